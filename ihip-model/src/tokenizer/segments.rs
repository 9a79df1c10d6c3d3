//! Cuts a long text where no word can reach over the cut, so that each part is encoded by itself: in parallel, and
//! with the tokenizer's many bytes of bookkeeping for each byte of text only a few kilobytes at a time.

/// Least bytes of a segment but the last.
const SEGMENT: usize = 16 << 10;

/// The text in order, cut before spaces that follow something else than white space. In every splitting rule of
/// [`words`](super::words) a space begins a word, unless white space stands before it.
pub(super) fn segments(text: &str) -> Vec<&str> {
    let mut segments = Vec::with_capacity(text.len() / SEGMENT + 1);
    let mut rest = text;
    while let Some(cut) = first_cut(rest) {
        let (segment, after) = rest.split_at(cut);
        segments.push(segment);
        rest = after;
    }
    if !rest.is_empty() {
        segments.push(rest);
    }
    segments
}

fn first_cut(text: &str) -> Option<usize> {
    let spaces = text
        .as_bytes()
        .iter()
        .enumerate()
        .skip(SEGMENT)
        .filter(|(_, byte)| **byte == b' ');
    let follows_word = |at: &usize| {
        text[..*at]
            .chars()
            .next_back()
            .is_some_and(|before| !before.is_whitespace())
    };
    spaces.map(|(at, _)| at).find(follows_word)
}

#[cfg(test)]
mod tests {
    use super::{SEGMENT, segments};

    #[test]
    fn cuts_only_before_a_space_after_a_word() {
        let text = "word  \n word。 ".repeat(SEGMENT / 4);
        let parts = segments(&text);
        assert!(parts.len() > 2);
        assert_eq!(parts.concat(), text);
        for part in &parts[1..] {
            assert!(part.starts_with(' '));
        }
        for part in &parts[..parts.len() - 1] {
            assert!(part.len() >= SEGMENT && !part.ends_with(char::is_whitespace));
        }
    }

    #[test]
    fn a_text_without_a_cut_is_one_segment() {
        for text in ["x".repeat(3 * SEGMENT), " ".repeat(3 * SEGMENT)] {
            assert_eq!(segments(&text), [text.as_str()]);
        }
        assert!(segments("").is_empty());
    }
}
