"use strict";
// Sorts, filters and pages the tables. A column comes as codes: places of its values in their order, so that every
// sort is one of small integers. Only the rows of one page are in the document, however many there are.
(() => {
  const PAGE = 100;
  const payload = JSON.parse(document.getElementById("payload").textContent);

  function cellText(element, text) {
    const bold = /^\*\*(.+)\*\*$/.exec(text);
    if (bold) {
      element.appendChild(document.createElement("strong")).textContent = bold[1];
    } else {
      element.textContent = text;
    }
  }

  function start(root, data) {
    const columns = data.columns;
    const body = root.querySelector("tbody");
    const form = root.querySelector("form");
    const text = root.querySelector("[data-text]");
    const selects = [...root.querySelectorAll("select")];
    const headers = [...root.querySelectorAll("th[aria-sort]")];
    const steps = [...root.querySelectorAll("[data-step]")];
    const natural = Int32Array.from({ length: data.rows }, (_, row) => row);
    let order = natural.slice();
    let shown = natural;
    let page = 0;
    let words = null; // lower-case text of every row, made when it is first looked for

    function haystack() {
      if (!words) {
        const lower = columns.map((column) => column.levels.map((level) => level.toLowerCase()));
        words = Array.from(natural, (row) => columns.map((column, c) => lower[c][column.codes[row]]).join("\n"));
      }
      return words;
    }

    function filter() {
      const chosen = selects
        .filter((select) => select.value !== "")
        .map((select) => [columns[select.dataset.column].codes, Number(select.value)]);
      const wanted = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      const hay = wanted.length ? haystack() : null;
      shown = order.filter(
        (row) =>
          chosen.every(([codes, code]) => codes[row] === code) && wanted.every((word) => hay[row].includes(word)),
      );
      page = 0;
      draw();
    }

    function sort(place) {
      const header = headers[place];
      const descending = header.getAttribute("aria-sort") === "ascending";
      headers.forEach((other) => other.setAttribute("aria-sort", "none"));
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const { codes, known } = columns[place];
      const sign = descending ? -1 : 1;
      // What is missing comes last in either direction; equal rows keep their order.
      order = Int32Array.from(
        [...order].sort((a, b) => {
          const missing = (codes[a] >= known) - (codes[b] >= known);
          return missing || (codes[a] < known ? sign : 1) * (codes[a] - codes[b]);
        }),
      );
      filter();
    }

    function draw() {
      const pages = Math.max(1, Math.ceil(shown.length / PAGE));
      const first = page * PAGE;
      const rows = shown.slice(first, first + PAGE);
      const fragment = document.createDocumentFragment();
      for (const row of rows) {
        const line = fragment.appendChild(document.createElement("tr"));
        columns.forEach((column, c) => {
          const cell = line.appendChild(document.createElement(c ? "td" : "th"));
          if (!c) cell.scope = "row";
          if (column.numeric) cell.className = "number";
          cellText(cell, column.levels[column.codes[row]]);
        });
      }
      body.replaceChildren(fragment);
      const number = (value) => value.toLocaleString("en");
      const range = rows.length ? `rows ${number(first + 1)} to ${number(first + rows.length)} of ` : "";
      const all = shown.length < data.rows ? `, of ${number(data.rows)} in all` : "";
      root.querySelector("[data-status]").textContent = `${range}${number(shown.length)}${all}`;
      root.querySelector("[data-page]").textContent = `page ${page + 1} of ${pages}`;
      steps[0].disabled = page === 0;
      steps[1].disabled = page >= pages - 1;
    }

    headers.forEach((header, place) => header.firstElementChild.addEventListener("click", () => sort(place)));
    selects.forEach((select) => select.addEventListener("change", filter));
    text.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", (event) => {
      event.preventDefault(); // the browser would clear the fields only after this
      text.value = "";
      selects.forEach((select) => (select.value = ""));
      headers.forEach((header) => header.setAttribute("aria-sort", "none"));
      order = natural.slice();
      filter();
    });
    steps.forEach((button) =>
      button.addEventListener("click", () => {
        page += Number(button.dataset.step);
        draw();
        root.querySelector(".scroll").scrollTop = 0;
      }),
    );
    draw();
  }

  document.querySelectorAll("[data-grid]").forEach((root) => start(root, payload[root.dataset.grid]));
})();
