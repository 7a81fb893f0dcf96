// Words of the page, see skinmm/serve/texts.toml.
export const WORDS = {{ dict(text.messages, label=text.result.label, scale=text.result.scale, scale_threshold=text.result.scale_threshold, alternative=text.reliability.alternative, **text.browser) | tojson }};

// Return a sentence; `values` take the place of the names in braces.
export const say = (key, values = {}) => WORDS[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
