'use strict';
(() => {
  const element = document.getElementById('gallery-data');
  if (!element) return;
  const data = JSON.parse(element.textContent);
  const controls = document.getElementById('controls');
  const cards = document.getElementById('cards');
  const dialog = document.getElementById('enlarged');
  const control = name => controls.elements[name];

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const readState = () => ({
    label: Number(control('class').value),
    kind: Number(control('kind').value),
    sort: control('sort').value,
    scores: data.runs.map((_, run) => Number(control('score-' + run).value)),
  });

  // Returns the boxes of each pane of an image, the results of each run, and whether the image is shown.
  const view = (image, state) => {
    const ofClass = box => state.label < 0 || box.label === state.label;
    const truth = image.boxes.filter(ofClass).map(box => {
      const kinds = [...box.kinds];
      if (box.seen.some((scores, run) => Math.max(...scores) < state.scores[run])) kinds.push(data.missed);
      const lost = data.runs.filter((_, run) => box.seen[run][0] < state.scores[run]);
      const notes = [...box.kinds.map(kind => data.kinds[kind])];
      if (lost.length) notes.push('not found' + (data.runs.length > 1 ? ' by ' + lost.join(' and ') : ''));
      return {...box, kinds, notes, wrong: notes.length > 0};
    });
    const runs = image.runs.map((boxes, run) => boxes.filter(box => ofClass(box) && box.score >= state.scores[run]).map(box => ({
      ...box, kinds: [box.kind], wrong: box.kind > 0, notes: box.kind > 0 ? [data.kinds[box.kind]] : [],
    })));
    const results = runs.map((boxes, run) => {
      const found = truth.filter(box => box.seen[run][0] >= state.scores[run]).length;
      const wrong = boxes.filter(box => box.wrong).length;
      const total = truth.length + found + wrong;
      return {found, lost: truth.length - found, wrong, f1: total ? 2 * found / total : 1};
    });
    const panes = [truth, ...runs];
    const drawn = panes.flat();
    const shown = (state.label < 0 || drawn.length > 0) && (state.kind < 0 || image.kinds.includes(state.kind)
      || drawn.some(box => box.kinds.includes(state.kind)));
    return {panes, results, shown};
  };

  const drawBox = (box, state) => {
    const node = make('div', 'box');
    if (box.wrong) node.classList.add('wrong');
    if (state.kind >= 0 && !box.kinds.includes(state.kind)) node.classList.add('dim');
    const [left, top, width, height] = box.box;
    Object.assign(node.style, {left: left + '%', top: top + '%', width: width + '%', height: height + '%'});
    node.style.setProperty('--colour', data.classes[box.label].colour);
    const name = data.classes[box.label].name + (box.score === undefined ? '' : ' ' + box.score.toFixed(2));
    const notes = box.notes.map(note => ' · ' + note).join('');
    const label = make('b', '', name);
    label.append(make('i', '', notes));
    node.append(label);
    node.title = name + notes;
    return node;
  };

  const makeCard = image => {
    const card = make('figure', 'card');
    const panes = make('div', 'panes');
    data.panes.forEach(title => {
      const pane = make('div', 'pane');
      pane.style.aspectRatio = image.width + ' / ' + image.height;
      if (image.src) {
        const picture = make('img');
        picture.src = image.src;
        picture.alt = title + ', ' + image.name;
        pane.append(picture);
      }
      if (data.panes.length > 1 || !image.src) pane.append(make('em', '', title + (image.src ? '' : ' (no picture)')));
      panes.append(pane);
    });
    card.append(panes, make('figcaption'));
    return card;
  };

  const fillCard = (card, image, state, view) => {
    card.querySelectorAll('.pane').forEach((pane, index) => {
      pane.querySelectorAll('.box').forEach(box => box.remove());
      // small boxes last, so that they lie on top of large ones
      const size = box => box.box[2] * box.box[3];
      pane.append(...[...view.panes[index]].sort((a, b) => size(b) - size(a)).map(box => drawBox(box, state)));
    });
    const name = make('strong', '', image.name);
    const results = view.results.map((result, run) =>
      (data.runs.length > 1 ? data.runs[run] + ': ' : '')
      + `${result.found} found, ${result.lost} not found, ${result.wrong} wrong (F1 ${result.f1.toFixed(2)})`);
    const notes = image.kinds.map(kind => data.kinds[kind]);
    const text = [...(data.runs.length ? results : [view.panes[0].length + ' boxes']), ...notes].join('; ');
    card.querySelector('figcaption').replaceChildren(name, document.createElement('br'), text);
  };

  const orders = {
    order: () => 0,
    worst: view => view.results[0].f1,
    best: view => -view.results[0].f1,
    gain: view => view.results[0].f1 - view.results[1].f1,
    loss: view => view.results[1].f1 - view.results[0].f1,
    most: view => -view.panes[0].length,
    fewest: view => view.panes[0].length,
  };

  const gallery = data.images.map((image, index) => ({image, index, card: makeCard(image)}));
  let visible = [];

  const update = () => {
    const state = readState();
    for (const item of gallery) {
      item.view = view(item.image, state);
      item.card.hidden = !item.view.shown;
      if (item.view.shown) fillCard(item.card, item.image, state, item.view);
    }
    const order = orders[state.sort];
    const sorted = [...gallery].sort((a, b) => order(a.view) - order(b.view) || a.index - b.index);
    cards.replaceChildren(...sorted.map(item => item.card));
    visible = sorted.filter(item => item.view.shown);
    document.getElementById('shown').textContent = `${visible.length} of ${gallery.length} images`;
    state.scores.forEach((score, run) => { control('value-' + run).value = score.toFixed(2); });
    cards.classList.toggle('no-labels', !control('labels').checked);
  };

  let current = 0;
  const enlarge = index => {
    current = (index + visible.length) % visible.length;
    const {image, view} = visible[current];
    const card = makeCard(image);
    fillCard(card, image, readState(), view);
    document.getElementById('enlarged-card').replaceChildren(card);
    if (!dialog.open) dialog.showModal();
  };

  cards.addEventListener('click', event => {
    const card = event.target.closest('.card');
    if (card) enlarge(visible.findIndex(item => item.card === card));
  });
  dialog.addEventListener('click', event => {
    if (event.target === dialog) dialog.close();
    const step = {previous: -1, next: 1}[event.target.name];
    if (step) enlarge(current + step);
  });
  dialog.addEventListener('keydown', event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (step) enlarge(current + step);
  });
  // Links in tables and bars set a filter: data-class, data-kind.
  document.addEventListener('click', event => {
    const link = event.target.closest('a[data-class], a[data-kind]');
    if (!link) return;
    control('class').value = link.dataset.class ?? '-1';
    control('kind').value = link.dataset.kind ?? '-1';
    update();
  });
  controls.addEventListener('input', update);
  controls.addEventListener('submit', event => event.preventDefault());
  control('labels').checked = window.innerWidth > 600;
  update();
})();
