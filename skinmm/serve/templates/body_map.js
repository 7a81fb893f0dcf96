// Report the chosen site to the page, and mark the site that the page reports.
// The keyboard works as in any radio group: one tab stop, arrows choose.
const radios = () => [...element.querySelectorAll('[role=radio]')];
const mark = () => {
  element.querySelectorAll('[data-site]').forEach((part) =>
    part.classList.toggle('chosen', part.dataset.site === props.value));
  const chosen = radios().find((radio) => radio.dataset.site === props.value);
  radios().forEach((radio) => {
    radio.setAttribute('aria-checked', String(radio === chosen));
    radio.setAttribute('tabindex', radio === (chosen || radios()[0]) ? '0' : '-1');
  });
};
const choose = (site) => {
  props.value = site;
  trigger('input');
  mark();
};
element.addEventListener('click', (event) => {
  const part = event.target.closest('[data-site]');
  if (part) choose(part.dataset.site);
});
element.addEventListener('keydown', (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Enter: 0, ' ': 0 }[event.key];
  const place = radios().indexOf(event.target.closest('[role=radio]'));
  if (step === undefined || place < 0) return;
  event.preventDefault();
  const next = radios()[(place + step + radios().length) % radios().length];
  choose(next.dataset.site);
  next.focus();
});
watch('value', mark);
