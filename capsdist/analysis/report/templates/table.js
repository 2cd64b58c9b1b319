// Sort the rows of the table by the column whose heading is clicked, in turn up and down.
for (const table of document.querySelectorAll(".runs")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    const key = row => row.cells[column].dataset.key ?? row.cells[column].textContent;
    const order = (a, b) => key(a).localeCompare(key(b), "en", { numeric: true });
    const numbers = (a, b) => Number(key(a)) - Number(key(b));
    const compare = body.rows[0].cells[column].dataset.key === undefined ? order : numbers;
    const rows = [...body.rows].sort((a, b) => up ? compare(a, b) : compare(b, a));
    body.append(...rows);
    for (const each of heads) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
  }));
}
