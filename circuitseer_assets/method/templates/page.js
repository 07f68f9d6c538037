"use strict";
(() => {
  const root = document.documentElement;
  const button = document.querySelector("[data-theme-toggle]");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  systemDark.addEventListener("change", show);
  show();

  // Within another page, as MLflow shows it, a browser follows no link to a place in this one.
  if (window !== window.parent) {
    for (const link of document.querySelectorAll('a[href^="#"]')) {
      link.addEventListener("click", (event) => {
        event.preventDefault();
        const place = document.querySelector(link.getAttribute("href"));
        place.scrollIntoView();
        place.tabIndex = -1;
        place.focus({ preventScroll: true });
      });
    }
  }

  for (const grid of document.querySelectorAll("[data-grid]")) {
    const rows = [...grid.tBodies[0].rows].map((row) => [...row.querySelectorAll("td")]);
    const cells = rows.flat();
    let current = cells.find((cell) => cell.tabIndex === 0) || cells[0];
    for (const cell of cells) cell.tabIndex = cell === current ? 0 : -1;
    const go = (cell) => {
      current.tabIndex = -1;
      cell.tabIndex = 0;
      current = cell;
      cell.focus();
    };
    grid.addEventListener("focusin", (event) => {
      const cell = event.target.closest("td");
      if (cell && cell !== current) {
        current.tabIndex = -1;
        cell.tabIndex = 0;
        current = cell;
      }
    });
    grid.addEventListener("keydown", (event) => {
      const row = rows.findIndex((one) => one.includes(current));
      const column = rows[row].indexOf(current);
      const last = rows[row].length - 1;
      const steps = {
        ArrowRight: [row, Math.min(column + 1, last)],
        ArrowLeft: [row, Math.max(column - 1, 0)],
        ArrowDown: [Math.min(row + 1, rows.length - 1), column],
        ArrowUp: [Math.max(row - 1, 0), column],
        Home: [row, 0],
        End: [row, last],
      };
      const to = steps[event.key];
      if (!to) return;
      event.preventDefault();
      go(rows[to[0]][to[1]]);
    });
  }
})();
