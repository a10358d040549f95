"use strict";
// Tables sort on a click on a heading, or Enter; a second one turns the order round. Empty cells stay last.
const NUMBER = /^[<+-]?[\d.,]+(e[+-]?\d+)?(?=$|[ %])/i;

function key(row, column) {
  const text = row.cells[column].textContent.trim();
  const found = NUMBER.exec(text);
  return { text, number: found ? Number(found[0].replace(/[<,]/g, "")) : NaN };
}

function compare(a, b, sign) {
  if (!a.text || !b.text) return !a.text - !b.text;
  if (!isNaN(a.number) && !isNaN(b.number)) return sign * (a.number - b.number);
  return sign * a.text.localeCompare(b.text, "en", { numeric: true });
}

function sort(heading) {
  const table = heading.closest("table");
  const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => [key(row, heading.cellIndex), row]);
  rows.sort((one, other) => compare(one[0], other[0], sign));
  body.append(...rows.map(([, row]) => row));
}

for (const heading of document.querySelectorAll("table.sortable th")) {
  heading.addEventListener("click", () => sort(heading));
  heading.addEventListener("keydown", (event) => {
    if (event.key === "Enter") sort(heading);
  });
}
