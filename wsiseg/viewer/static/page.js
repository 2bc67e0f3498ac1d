// What every page has: a banner, a voice for screen readers, dark and light.

export const $ = (id) => document.getElementById(id);

export function announce(text) {
  $("live").textContent = text;
}

export function banner(text, isBad = false) {
  clearTimeout(banner.timer);
  $("banner").textContent = text;
  $("banner").hidden = false;
  banner.timer = setTimeout(() => ($("banner").hidden = true), isBad ? 8000 : 2500);
  announce(text);
}

// Stays until something else is said.
export function alarm(text) {
  banner(text, true);
  clearTimeout(banner.timer);
}

// For what the page cannot do without.
export function fatal(error) {
  alarm(error.message);
  throw error;
}

export function toggleTheme() {
  const root = document.documentElement;
  const isDark = getComputedStyle(root).colorScheme === "dark" || (root.dataset.theme ?? "") === "dark"
    || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("wsiseg-theme", root.dataset.theme);
}

// What happens at a click on the button of each id, beside what every page's own buttons do.
export function bindClicks(clicks, stage) {
  const all = {
    ...clicks,
    "theme": toggleTheme,
    "help-open": () => $("help").showModal(),
    "help-close": () => $("help").close(),
    "zoom-in": () => stage.zoom(1.5),
    "zoom-out": () => stage.zoom(1 / 1.5),
    "zoom-home": () => stage.home(),
  };
  for (const [id, run] of Object.entries(all)) $(id).addEventListener("click", run);
}
