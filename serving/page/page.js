// Chooses recipe and view, and hands keys on.
import { ask, byId, make, say, state, tryTo } from "/page/core.js";
import { drift, versions } from "/page/figures.js";
import { inspect } from "/page/inspect.js";
import { startMask } from "/page/mask.js";
import { review } from "/page/review.js";
import { threshold } from "/page/threshold.js";

const views = { inspect, review, threshold, drift, versions };
const POLL = 2000; // milliseconds
const shown = () => (views[location.hash.slice(1)] ? location.hash.slice(1) : "inspect");

const open = tryTo(async () => {
  for (const name of Object.keys(views)) byId(name).hidden = name !== shown();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${shown()}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  say("");
  await views[shown()].open();
});

const onKey = tryTo(async (event) => {
  const typing = event.target.closest("input:not([type=checkbox]), select, textarea, dialog");
  const view = views[shown()];
  if (typing || byId("mask").open || event.ctrlKey || event.metaKey || event.altKey || !view.key) return;
  if (event.key.startsWith("Arrow") && shown() === "review" && !event.target.closest("#cards")) return;
  if (event.key.startsWith("Arrow")) event.preventDefault();
  await view.key(event.key);
});

const start = async () => {
  const { recipes } = await ask("/recipes");
  byId("recipe").replaceChildren(...recipes.map(({ name }) => make("option", { value: name }, name)));
  state.recipe = recipes[0]?.name ?? "";
  byId("recipe").addEventListener("change", () => { state.recipe = byId("recipe").value; open(); });
  for (const view of Object.values(views)) view.start();
  startMask();
  window.addEventListener("hashchange", open);
  document.addEventListener("keydown", onKey);
  await open();
  // a service that is gone for a moment is tried again
  setInterval(tryTo(async () => { if (!document.hidden && shown() === "inspect" && !byId("mask").open) await inspect.poll(); }), POLL);
};

tryTo(start)();
