// Keys, and the page that lists them.

// bindings: [{ keys: ["n", "]"], does: "Next object", run }]; ctrl+ and shift+ come first in a key. The list shows
// `shown` in place of `keys`, and leaves out what has no `does`. Held down a key acts once, or again and again if the
// binding has `repeats`: nobody has seen what a held A would accept. isBusy({ key, shiftKey, repeat }), with the key as
// in `keys`, says whether somebody else took it.
export function bindKeys(bindings, dialog, isBusy) {
  const actions = new Map(bindings.flatMap((binding) => binding.keys.map((key) => [key, binding])));
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    const name = pressed(event);
    const typing = event.target.matches("textarea, input:not([type=checkbox], [type=color], [type=range], [type=radio]), select");
    if (typing && name !== "Escape" && name !== "ctrl+s") return;
    if (typing && name === "Escape") return event.target.blur();
    // Keys that the focused control itself needs.
    const own = { "[type=range], [type=radio]": /^Arrow/, "button, [type=checkbox], [type=color], summary": /^(Enter| )$/, "#run-log": /^Arrow(Up|Down)$/ };
    for (const [selector, keys] of Object.entries(own)) if (event.target.matches(selector) && keys.test(name)) return;
    if (isBusy({ key: name, shiftKey: event.shiftKey, repeat: event.repeat })) return event.preventDefault();
    const action = actions.get(name);
    if (!action) return;
    event.preventDefault();
    if (!event.repeat || action.repeats) action.run();
  });
  dialog.querySelector("#help-keys").replaceChildren(
    ...bindings.filter(({ does }) => does).map(({ keys, shown = keys, does }) => {
      const row = document.createElement("div");
      const label = document.createElement("span");
      label.textContent = does;
      const caps = document.createElement("span");
      for (const key of shown) {
        const cap = document.createElement("kbd");
        cap.textContent = key.replace("ctrl+", "Ctrl ").replace("shift+", "Shift ").replace(/[a-z]$/, (letter) => (key.length === 1 || key.includes("+") ? letter.toUpperCase() : letter));
        caps.append(cap, " ");
      }
      row.append(label, caps);
      return row;
    }),
  );
}

// Where the keyboard writes Greek or Russian, say, a letter is the Latin one of the same key.
function pressed({ key, code, ctrlKey, metaKey, shiftKey, altKey }) {
  if (altKey) return "";
  const latin = /[^\p{Script=Latin}\p{Script=Common}]/u.test(key) ? code.replace("Key", "") : key;
  const letter = latin.length === 1 ? latin.toLowerCase() : latin;
  const ctrl = ctrlKey || metaKey ? "ctrl+" : "";
  return ctrl + (ctrl && shiftKey ? "shift+" : "") + letter;
}
