"use strict";
(() => {
  const keys = {
    order: (a, b) => a.dataset.order - b.dataset.order,
    down: (a, b) => b.dataset.score - a.dataset.score,
    up: (a, b) => a.dataset.score - b.dataset.score,
    path: (a, b) => a.dataset.path.localeCompare(b.dataset.path),
  };
  const cards = (gallery) => [...gallery.querySelectorAll(".card")];
  const seen = (gallery) => cards(gallery).filter((card) => !card.hidden);
  const large = document.getElementById("large"), shown = document.getElementById("shown");
  let current = null;

  function arrange(id) {
    const gallery = document.getElementById(`${id}-gallery`), section = document.getElementById(id);
    const outcome = section.querySelector(".filter").value, order = section.querySelector(".sort").value;
    for (const card of cards(gallery).sort(keys[order])) {
      card.hidden = outcome !== "" && card.dataset.outcome !== outcome;
      gallery.append(card);
    }
    section.querySelector(".count").textContent = `${seen(gallery).length} shown`;
  }

  function enlarge(card) {
    current = card;
    shown.replaceChildren(...[...card.children].map((child) => child.cloneNode(true)));
    if (!large.open) large.showModal();
  }

  function step(card, by) {
    const all = seen(card.parentElement), next = all[all.indexOf(card) + by];
    if (!next) return;
    if (large.open) enlarge(next); else next.focus();
  }

  for (const select of document.querySelectorAll("select[data-of]")) {
    select.addEventListener("change", () => arrange(select.dataset.of));
  }
  for (const card of document.querySelectorAll(".card")) {
    card.addEventListener("click", () => enlarge(card));
    card.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); enlarge(card); }
      if (event.key === "ArrowRight" || event.key === "ArrowDown") { event.preventDefault(); step(card, 1); }
      if (event.key === "ArrowLeft" || event.key === "ArrowUp") { event.preventDefault(); step(card, -1); }
    });
  }
  large.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") step(current, 1);
    if (event.key === "ArrowLeft") step(current, -1);
  });
  large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
  large.querySelector(".close").addEventListener("click", () => large.close());
  large.addEventListener("close", () => current && current.focus());
})();
