"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const control = (kind) => document.querySelector(kind + '[data-for="' + table.id + '"]');
  const [search, order, count] = ["input", "select", "output"].map(control);
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const keys = heads.map((_, column) => {
    const values = rows.map((row) => row.cells[column].dataset.v);
    const numbers = values.every((value) => value === "" || !isNaN(Number(value)));
    return values.map((value) => (value === "" ? null : numbers ? Number(value) : value));
  });

  // Rows without a value stay last whichever way; equal ones stay in the order of the file.
  function sort(column, up) {
    const key = keys[column];
    const compare = (a, b) => {
      const x = key[a], y = key[b];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      const less = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
      return (up ? less : -less) || a - b;
    };
    const turn = rows.map((_, i) => i).sort(compare);
    body.append(...turn.map((i) => rows[i]));
    heads.forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", up ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    order.value = String(column);
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      shown += !row.hidden;
    });
    count.textContent = words.length ? shown + " of " + rows.length : rows.length + " lines";
  }

  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sort(column, now ? now === "descending" : head.dataset.first === "up");
    });
  });
  order.addEventListener("change", () => {
    if (order.value !== "") sort(Number(order.value), heads[Number(order.value)].dataset.first === "up");
  });
  search.addEventListener("input", filter);
  filter();
}
