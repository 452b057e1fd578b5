// Marking pictures, several at once, sorted by score.
import { ask, byId, make, mark, state, tryTo, undoMark, words } from "/page/core.js";
import { drawMask } from "/page/mask.js";

let cursor = null;
let focused = 0;
const found = new Map();
const cards = () => [...byId("cards").children];

const focus = (at) => {
  const all = cards();
  if (!all.length) return;
  focused = Math.max(0, Math.min(at, all.length - 1));
  all.forEach((card, i) => { card.tabIndex = i === focused ? 0 : -1; });
  all[focused].focus();
};

const card = (picture) => {
  found.set(picture.id, picture);
  const button = make("button", { "data-id": picture.id, "aria-pressed": "false", tabindex: cards().length ? -1 : 0,
    onclick: () => button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true")),
    onfocus: () => { focused = cards().indexOf(button); } },
  make("img", { src: `/api/v1/pictures/${picture.id}/view?side=320`, alt: "", loading: "lazy" }), ...words(picture));
  return button;
};

const load = async (more = false) => {
  const query = new URLSearchParams({ recipe: state.recipe, order: byId("review-order").value, limit: 60 });
  if (byId("review-mark").value) query.set("mark", byId("review-mark").value);
  if (more && cursor) query.set("cursor", cursor);
  const page = await ask(`/pictures?${query}`);
  if (!more) { byId("cards").replaceChildren(); found.clear(); }
  for (const picture of page.pictures) byId("cards").append(card(picture));
  cursor = page.cursor;
  byId("more").hidden = !cursor;
};

const chosen = () => {
  const pressed = cards().filter((each) => each.getAttribute("aria-pressed") === "true");
  return (pressed.length ? pressed : cards().slice(focused, focused + 1)).map((each) => Number(each.dataset.id));
};

const again = async (action) => {
  await action;
  const at = focused;
  await load();
  focus(at);
};

const keys = {
  g: () => again(mark(chosen(), "good")),
  d: () => again(mark(chosen(), "defective")),
  c: () => again(mark(chosen(), null)),
  u: () => again(undoMark()),
  m: () => { const picture = found.get(chosen()[0]); if (picture) drawMask(picture, () => again()); },
  ArrowRight: () => focus(focused + 1), j: () => focus(focused + 1),
  ArrowLeft: () => focus(focused - 1), k: () => focus(focused - 1),
  ArrowDown: () => focus(focused + columns()), ArrowUp: () => focus(focused - columns()),
};
const columns = () => getComputedStyle(byId("cards")).gridTemplateColumns.split(" ").length;

export const review = {
  open: () => load(),
  key: async (key) => { if (!keys[key]) return false; await keys[key](); return true; },
  start: () => {
    const buttons = { "mark-good": "g", "mark-defective": "d", "mark-none": "c", draw: "m", "undo-mark": "u" };
    for (const [id, key] of Object.entries(buttons)) byId(id).addEventListener("click", tryTo(keys[key]));
    for (const id of ["review-mark", "review-order"]) byId(id).addEventListener("change", tryTo(() => load()));
    byId("more").addEventListener("click", tryTo(() => load(true)));
  },
};
