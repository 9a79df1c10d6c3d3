//! From logits to a token.

use crate::device::Sampling;

/// Draws a token: greedy at temperature 0 (the lower token in a tie), else among the smallest set of most likely
/// tokens whose probabilities reach `top_p`.
///
/// Probabilities are f64 and are summed from the most likely token on, lower tokens first where they are equal, so
/// that the same `draw` gives the same token anywhere.
pub(super) fn sample(logits: &[f32], sampling: &Sampling, draw: f32) -> u32 {
    let best =
        logits.iter().enumerate().fold(0, |best, (token, logit)| if *logit > logits[best] { token } else { best });
    if sampling.temperature <= 0.0 {
        return best as u32;
    }

    let temperature = f64::from(sampling.temperature);
    let largest = f64::from(logits[best]);
    let mut tokens: Vec<(u32, f64)> = logits
        .iter()
        .enumerate()
        .map(|(token, logit)| (token as u32, ((f64::from(*logit) - largest) / temperature).exp()))
        .collect();
    let total: f64 = tokens.iter().map(|(_, weight)| weight).sum();
    tokens.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));

    let mut kept = 0;
    let mut reached = 0.0;
    for (_, weight) in &tokens {
        reached += weight;
        kept += 1;
        if reached >= f64::from(sampling.top_p) * total {
            break;
        }
    }
    let mut left = f64::from(draw) * reached;
    for (token, weight) in &tokens[..kept] {
        left -= weight;
        if left < 0.0 {
            return *token;
        }
    }
    // Rounding alone can leave something after the last one.
    tokens[kept - 1].0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(temperature: f32, top_p: f32) -> Sampling {
        Sampling { temperature, top_p }
    }

    #[test]
    fn greedy_takes_the_lowest_of_equal_tokens() {
        assert_eq!(sample(&[0.0, 3.0, -1.0, 3.0], &at(0.0, 1.0), 0.9), 1);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        // Probabilities 1/4, 1/2, 1/4 in the order 1, 0, 2.
        let logits = [0.0, 2f32.ln(), 0.0];
        let drawn = [0.0, 0.49, 0.51, 0.74, 0.76, 0.999].map(|draw| sample(&logits, &at(1.0, 1.0), draw));
        assert_eq!(drawn, [1, 1, 0, 0, 2, 2]);
    }

    #[test]
    fn temperature_flattens() {
        // At temperature 2 the weights 1 and 9 become 1 and 3.
        let logits = [0.0, 9f32.ln()];
        assert_eq!(sample(&logits, &at(2.0, 1.0), 0.74), 1);
        assert_eq!(sample(&logits, &at(2.0, 1.0), 0.76), 0);
    }

    #[test]
    fn top_p_leaves_the_smallest_set_that_reaches_it() {
        let logits = [0.0, 2f32.ln(), 0.0];
        for draw in [0.0, 0.5, 0.999] {
            assert_eq!(sample(&logits, &at(1.0, 0.4), draw), 1);
        }
        assert_eq!(sample(&logits, &at(1.0, 0.6), 0.999), 0);
    }
}
