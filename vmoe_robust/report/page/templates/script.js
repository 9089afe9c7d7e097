'use strict';
(() => {
  const all = (where, what) => [...where.querySelectorAll(what)];

  // A number where there is one, text else; null where nothing is known.
  const key = (cell) => {
    const text = cell.textContent.trim();
    if (text === '-' || text === '') return null;
    const exact = cell.dataset.value ?? text;
    const is_number = cell.classList.contains('number') && !Number.isNaN(Number(exact));
    return is_number ? Number(exact) : exact;
  };
  // By which a cell is sorted: the number that its text is, or the first of a list.
  const rank = (cell) => {
    const value = key(cell);
    if (typeof value !== 'string') return value;
    try {
      const [first] = [JSON.parse(value)].flat(Infinity);
      return typeof first === 'number' ? first : value;
    } catch {
      return value;
    }
  };
  // Numbers come first, what is not known last, whatever the direction.
  const kinds = ['number', 'string', 'object'];
  const compare = (a, b, sign) => {
    if (typeof a !== typeof b) return kinds.indexOf(typeof a) - kinds.indexOf(typeof b);
    if (a === null) return 0;
    if (typeof a === 'number') return sign * (a - b);
    return sign * a.localeCompare(b, 'en', { numeric: true });
  };
  const sort = (button) => {
    const head = button.closest('th');
    const body = head.closest('table').tBodies[0];
    const down = head.getAttribute('aria-sort') === 'ascending';
    for (const other of head.parentNode.cells) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const rows = [...body.rows].map((row) => [rank(row.cells[head.cellIndex]), row]);
    rows.sort(([a], [b]) => compare(a, b, down ? -1 : 1));
    body.append(...rows.map(([, row]) => row));
  };

  const filter = (input) => {
    const words = input.value.toLowerCase();
    for (const row of all(input.closest('.table'), 'tbody tr')) {
      row.hidden = !row.textContent.toLowerCase().includes(words);
    }
  };

  // What is saved has the exact numbers, and a column for each end.
  const read = (table) => {
    const named = all(table, 'thead th').map((th) => th.textContent.trim());
    const heads = named.map((name, i) => { // no two alike
      const before = named.slice(0, i).filter((other) => other === name).length;
      return before ? name + ' #' + (before + 1) : name;
    });
    const rows = all(table, 'tbody tr').filter((row) => !row.hidden);
    return { heads, rows: rows.map((row) => [...row.cells]) };
  };
  const records = ({ heads, rows }) => rows.map((cells) => {
    const record = {};
    cells.forEach((cell, i) => {
      const { low, high, n } = cell.dataset;
      record[heads[i]] = key(cell);
      if (low !== undefined) {
        record[heads[i] + ' low'] = Number(low);
        record[heads[i] + ' high'] = Number(high);
      }
      if (n !== undefined) record[heads[i] + ' n'] = Number(n);
    });
    return record;
  });
  const csv = (found) => {
    const lines = records(found);
    const names = [...new Set(lines.flatMap(Object.keys))];
    const quote = (value) => {
      let text = value === null || value === undefined ? '' : String(value);
      // A spreadsheet would take it for a formula.
      if (/^[=+@\t\r-]/.test(text) && Number.isNaN(Number(text))) text = "'" + text;
      return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
    };
    const rows = lines.map((line) => names.map((name) => line[name]));
    return [names, ...rows].map((row) => row.map(quote).join(',')).join('\n') + '\n';
  };
  const tex = ({ heads, rows }) => {
    const special = { '\\': '\\textbackslash{}', '~': '\\textasciitilde{}', '^': '\\textasciicircum{}' };
    const safe = (text) => text.trim().replace(/[\\~^&%$#_{}]/g, (c) => special[c] || '\\' + c);
    const line = (texts) => '  ' + texts.map(safe).join(' & ') + ' \\\\';
    return [
      '\\begin{tabular}{' + 'l'.repeat(heads.length) + '}', '  \\toprule',
      line(heads), '  \\midrule',
      ...rows.map((cells) => line(cells.map((cell) => cell.textContent))),
      '  \\bottomrule', '\\end{tabular}', '',
    ].join('\n');
  };
  const save = (name, text) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], { type: 'text/plain' }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  };
  const write = {
    csv, tex, json: (found) => JSON.stringify(records(found), null, 1) + '\n',
  };

  const gallery = () => {
    const kind = document.querySelector('input[name=kind]:checked')?.value ?? 'all';
    const run = document.getElementById('of-run')?.value ?? '';
    let count = 0;
    const block = document.getElementById('of-block')?.value ?? '';
    for (const mark of all(document, '.gallery [data-block]')) {
      mark.toggleAttribute('hidden', block !== '' && block !== mark.dataset.block);
    }
    for (const item of all(document, '.gallery > li')) {
      const kinds = item.dataset.kinds.split(' ');
      item.hidden = !((kind === 'all' || kinds.includes(kind)) && (!run || item.dataset.run === run));
      count += !item.hidden;
    }
    document.getElementById('count').textContent = count + (count === 1 ? ' image' : ' images');
  };

  const tip = document.getElementById('tip');
  const point = (event) => {
    const words = event.target.closest?.('[data-tip]')?.dataset.tip;
    tip.hidden = !words;
    if (!words) return;
    tip.textContent = words;
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 12, innerWidth - width - 4);
    const top = event.clientY + 16 + height > innerHeight ? event.clientY - height - 8 : event.clientY + 16;
    tip.style.left = Math.max(left, 0) + 'px';
    tip.style.top = top + 'px';
  };

  document.addEventListener('click', (event) => {
    const button = event.target.closest('button');
    if (!button) return;
    if (button.matches('.sort')) sort(button);
    if (button.dataset.save) {
      const table = button.closest('.table');
      const kind = button.dataset.save;
      save(table.dataset.name + '.' + kind, write[kind](read(table)));
    }
    if (button.dataset.text) {
      save(button.dataset.text, button.parentNode.querySelector('pre').textContent + '\n');
    }
  });
  document.addEventListener('input', (event) => {
    if (event.target.matches('.filter')) filter(event.target);
    if (event.target.closest('.filters')) gallery();
  });
  if (document.getElementById('of-run')?.value) gallery();
  document.addEventListener('pointerover', point);
  document.addEventListener('pointerdown', point);
})();
