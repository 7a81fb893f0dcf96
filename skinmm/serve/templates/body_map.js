// Report the chosen site to the page, and mark the site that the page reports.
const mark = () => element.querySelectorAll('[data-site]').forEach((part) =>
  part.setAttribute('aria-pressed', String(part.dataset.site === props.value)));
const choose = (event) => {
  const part = event.target.closest('[data-site]');
  if (!part || (event.type === 'keydown' && !['Enter', ' '].includes(event.key))) return;
  event.preventDefault();
  props.value = part.dataset.site;
  trigger('input');
  mark();
};
element.addEventListener('click', choose);
element.addEventListener('keydown', choose);
watch('value', mark);
