"use strict";
// Search and sort the list of picks; without scripts it stays a plain table.
const table = document.querySelector("#all-picks table");
if (table) {
  const body = table.tBodies[0], rows = [...body.rows];
  const box = document.createElement("input");
  box.type = "search";
  box.placeholder = "Search the picks";
  box.setAttribute("aria-label", "Search the picks");
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(words);
  });
  document.querySelector("#all-picks h3").after(box);
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    let up = false;
    button.addEventListener("click", () => {
      up = !up;
      const text = (row) => row.cells[at].textContent;
      const number = (row) => Number(text(row).replaceAll(",", ""));
      const numeric = rows.every((row) => !Number.isNaN(number(row)));
      rows.sort((a, b) =>
        (up ? 1 : -1) * (numeric ? number(a) - number(b) : text(a).localeCompare(text(b))));
      for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...rows);
    });
  });
}
