// Words of the page, see skinmm/serve/texts.toml.
const WORDS = {{ words | tojson }};
const NAMES = {{ names | tojson }};

// Return a sentence; `values` take the place of the names in braces.
export const say = (key, values = {}) => WORDS[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);

export const nameOf = (input) => NAMES[input] ?? input;
