// What all views need; whatever comes from outside becomes a text node, never HTML.

export const byId = (id) => document.getElementById(id);
export const state = { recipe: "" };

export const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
};

export const say = (line, error = false) => {
  byId("status").textContent = line;
  byId("status").classList.toggle("error", error);
};

export const ask = async (path, options = {}) => {
  const answer = await fetch(`/api/v1${path}`, options);
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.error || `the service answered ${answer.status}`);
  return content;
};

export const post = (path, body) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body || {}) });

export const recipePath = (rest = "") => `/recipes/${encodeURIComponent(state.recipe)}${rest}`;
export const tryTo = (action) => (...values) => Promise.resolve(action(...values)).catch((error) => say(error.message, true));
export const score = (value) => (value === null || value === undefined ? "–" : value.toFixed(4));
export const decided = (picture) => picture.decision_now || picture.decision;

export const mark = async (ids, value) => {
  if (!ids.length) return;
  await post("/marks", { pictures: ids, mark: value });
  say(`${ids.length} marked: ${value || "no mark"}`);
};

export const undoMark = async () => {
  const { pictures } = await post("/marks/undo", { recipe: state.recipe });
  say(`mark of ${pictures.length} taken back`);
};

export const words = (picture) => [
  make("span", { class: "name" }, picture.name || `picture ${picture.id}`), make("br"), `${score(picture.score)} `,
  make("span", { class: decided(picture) || "none" }, decided(picture) || "no threshold"),
  picture.mark ? ` · marked ${picture.mark}${picture.has_mask ? ", mask" : ""}` : "",
];

const SVG = "http://www.w3.org/2000/svg";
const shape = (tag, attributes) => {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

// Bars of one or more series on a common axis; lines: [[position in 0..1, class]]
export const bars = (series, label, lines = []) => {
  const svg = shape("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img", "aria-label": label });
  for (const { counts, kind } of series) {
    const most = Math.max(1, ...counts);
    counts.forEach((count, i) => {
      const height = (95 * count) / most;
      svg.append(shape("rect", { class: kind, x: (100 * i) / counts.length, width: 95 / counts.length, y: 100 - height, height }));
    });
  }
  for (const [at, kind] of lines) svg.append(shape("line", { class: kind, x1: 100 * at, x2: 100 * at, y1: 0, y2: 100 }));
  return svg;
};
