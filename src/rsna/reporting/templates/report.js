"use strict";
(() => {
  document.documentElement.classList.add("js");
  const form = document.querySelector(".filters");
  if (!form) return;
  const tiles = [...document.querySelectorAll(".tiles > li")];
  const viewer = document.getElementById("viewer");
  const visible = () => tiles.filter((tile) => !tile.hidden);
  let current = null;

  function filter() {
    const kind = form.elements.kind.value;
    const view = form.elements.view.value;
    for (const tile of tiles) {
      tile.hidden = Boolean((kind && tile.dataset.kind !== kind) || (view && tile.dataset.view !== view));
    }
    document.body.classList.toggle("without", !form.elements.boxes.checked);
    form.querySelector("output").textContent = `${visible().length} of ${tiles.length} images`;
  }

  function show(tile) {
    current = tile;
    const shown = visible();
    viewer.querySelector(".large").replaceChildren(tile.querySelector(".image").cloneNode(true));
    viewer.querySelector(".words").replaceChildren(...[...tile.querySelector(".words").cloneNode(true).childNodes]);
    viewer.querySelector(".position").textContent = `${shown.indexOf(tile) + 1} of ${shown.length}`;
    if (!viewer.open) viewer.showModal();
  }

  function step(by) {
    const shown = visible();
    show(shown[(shown.indexOf(current) + by + shown.length) % shown.length]);
  }

  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const tile of tiles) tile.querySelector(".open").addEventListener("click", () => show(tile));
  for (const button of viewer.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => step(Number(button.dataset.step)));
  }
  viewer.querySelector("[data-close]").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
  viewer.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  // focus the image that was shown last, so that Tab continues from there
  viewer.addEventListener("close", () => current.querySelector(".open").focus());
  // some browsers keep the form over a reload
  filter();
})();
