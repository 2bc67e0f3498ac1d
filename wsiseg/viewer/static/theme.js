// Before anything is drawn: the theme that was chosen here last, if any; else the system's.
"use strict";
(() => {
  const chosen = localStorage.getItem("wsiseg-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
