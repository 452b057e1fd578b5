// The last pictures, and one of them with its heatmap.
import { ask, byId, make, mark, recipePath, say, score, state, tryTo, undoMark, words, decided } from "/page/core.js";

let pictures = [];
let current = null;
let seen = "";
let opacity = 0.5;

const show = () => {
  const picture = pictures.find((each) => each.id === current);
  if (!picture) return byId("shown").replaceChildren(make("p", {}, "No picture yet."));
  const base = `/api/v1/pictures/${picture.id}`;
  const failed = () => say("The heatmap cannot be shown now; choose the picture again.", true);
  const heatmap = make("img", { class: "heat", src: `${base}/heatmap`, alt: "", onerror: failed });
  const outline = make("img", { src: `${base}/outline`, alt: "" });
  const slider = make("input", { type: "range", min: 0, max: 1, step: 0.05, id: "opacity" });
  slider.value = opacity;
  heatmap.style.opacity = opacity;
  slider.addEventListener("input", () => { opacity = slider.value; heatmap.style.opacity = opacity; });
  const box = make("input", { type: "checkbox", checked: "", onchange: () => { outline.hidden = !box.checked; } });
  byId("shown").replaceChildren(
    make("h2", {}, picture.name || `picture ${picture.id}`),
    make("p", {}, make("strong", { class: decided(picture) || "none" }, decided(picture) || "no threshold"),
      ` · score ${score(picture.score)} · ${picture.regions.length} regions · version ${picture.version}` +
      `${picture.mark ? ` · marked ${picture.mark}` : ""} · ${new Date(picture.received * 1000).toLocaleString()}`),
    make("div", { class: "stack" }, make("img", { src: `${base}/view`, alt: `Picture ${picture.name}` }), heatmap, outline),
    make("div", { class: "tools" }, make("label", {}, "Heatmap opacity ", slider), make("label", {}, box, " Outline")));
};

const choose = (id) => {
  current = id;
  for (const button of byId("list").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(Number(button.dataset.id) === id));
    if (Number(button.dataset.id) === id) button.scrollIntoView({ block: "nearest" });
  }
  show();
};

const refresh = async (force) => {
  const query = new URLSearchParams({ recipe: state.recipe, limit: 50 });
  for (const key of ["decision", "mark", "source"]) if (byId(`by-${key}`).value) query.set(key, byId(`by-${key}`).value);
  const found = (await ask(`/pictures?${query}`)).pictures;
  const now = JSON.stringify(found);
  if (now === seen && !force) return;
  const newest = found.length && (!pictures.length || found[0].id > pictures[0].id);
  const focused = document.activeElement?.dataset?.id;
  seen = now;
  pictures = found;
  byId("list").replaceChildren(...found.map((picture) => make("li", {},
    make("button", { "data-id": picture.id, onclick: () => choose(picture.id) },
      make("img", { src: `/api/v1/pictures/${picture.id}/view?side=160`, alt: "", loading: "lazy" }),
      make("span", {}, ...words(picture))))));
  const kept = found.some((picture) => picture.id === current);
  choose((newest && byId("follow").checked) || !kept ? found[0]?.id ?? null : current);
  if (focused) byId("list").querySelector(`[data-id="${Number(focused)}"]`)?.focus();
};

const send = async (files) => {
  const failures = [];
  for (const file of files) {
    say(`judging ${file.name} …`);
    const query = new URLSearchParams({ source: "page", name: file.name });
    await ask(recipePath(`/predict?${query}`), { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file })
      .catch((error) => failures.push(`${file.name}: ${error.message}`));
  }
  await refresh(true);
  say(failures.join("; ") || `${files.length} judged`, failures.length > 0);
};

const step = (by) => {
  const at = pictures.findIndex((picture) => picture.id === current) + by;
  if (pictures[at]) choose(pictures[at].id);
};

export const inspect = {
  open: () => refresh(true),
  poll: () => refresh(false),
  key: async (key) => {
    if (key === "j" || key === "ArrowDown" || key === "ArrowRight") step(1);
    else if (key === "k" || key === "ArrowUp" || key === "ArrowLeft") step(-1);
    else if (key === "u") await undoMark().then(() => refresh(true));
    else if ((key === "g" || key === "d") && current) await mark([current], key === "g" ? "good" : "defective").then(() => refresh(true));
    else return false;
    return true;
  },
  start: () => {
    const zone = byId("drop");
    byId("files").addEventListener("change", tryTo(async (event) => { await send([...event.target.files]); event.target.value = ""; }));
    for (const name of ["by-decision", "by-mark", "by-source"]) byId(name).addEventListener("change", tryTo(() => refresh(true)));
    document.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
    document.addEventListener("dragleave", () => zone.classList.remove("over"));
    document.addEventListener("drop", tryTo(async (event) => {
      event.preventDefault();
      zone.classList.remove("over");
      await send([...event.dataTransfer.files]);
    }));
  },
};
