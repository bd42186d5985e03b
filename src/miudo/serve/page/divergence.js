// How far two guesses are apart, of what the API gives of each: the likeliest tokens.
// Read next: compare.js.

// KL(a || b) in nats, of the tokens that both name, one by one, and all others as one. To lump
// outcomes together never raises KL (the data-processing inequality), so this is a lower bound.
// null where nothing precedes the token.
export function divergence(a, b) {
  if (a.logprob === null || b.logprob === null) return null;
  const other = new Map(b.top.map(({ text, logprob }) => [text, logprob]));
  let kl = 0, restA = 1, restB = 1;
  for (const { text, logprob } of a.top) {
    // Several tokens can have these texts: which is which is not known.
    if (!other.has(text) || text === "" || text.includes("\ufffd")) continue;
    const p = Math.exp(logprob);
    kl += p * (logprob - other.get(text));
    restA -= p;
    restB -= Math.exp(other.get(text));
  }
  if (restA > 1e-9 && restB > 1e-9) kl += restA * Math.log(restA / restB);
  return Math.max(0, kl);
}
