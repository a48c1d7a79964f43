/* Columns of the score tables can be sorted; without scripts the page is the same, in its order. */
"use strict";

/* What a row is sorted by: a number, or null where there is none; a name in columns without. */
function sortKey(row, column, isNumber) {
  const cell = row.cells[column];
  if (!isNumber) return cell.firstChild.textContent;
  return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
}

function compare(first, second, descending) {
  if (first === null || second === null) return (first === null) - (second === null);
  const order = typeof first === "string" ? first.localeCompare(second) : first - second;
  return descending ? -order : order;
}

function sortRows(table, header) {
  const isNumber = header.classList.contains("number");
  const before = header.getAttribute("aria-sort");
  const descending = before === null ? isNumber : before === "ascending";
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const keyed = Array.from(body.rows, (row) => [sortKey(row, header.cellIndex, isNumber), row]);
  keyed.sort((first, second) => compare(first[0], second[0], descending));
  body.append(...keyed.map((entry) => entry[1]));
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    if (header.classList.contains("bar")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.addEventListener("click", () => sortRows(table, header));
    header.replaceChildren(button);
  }
}
