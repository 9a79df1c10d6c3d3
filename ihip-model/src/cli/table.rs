//! Tables on standard output: columns of text, two spaces apart.

use std::fmt;

/// Rows of cells under a heading. A column whose cells all begin with a digit, or are `–`, is aligned to the right.
#[derive(Clone, Debug)]
pub(super) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

/// A cell that has nothing to say.
pub(super) const NOTHING: &str = "–";

impl<const N: usize> Table<N> {
    /// A table without rows.
    pub(super) fn new(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned)] }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    fn is_numeric(&self, column: usize) -> bool {
        let mut cells = self.rows[1..].iter().map(|row| row[column].as_str());
        cells.all(|cell| cell == NOTHING || cell.starts_with(|first: char| first.is_ascii_digit()))
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            |column: usize| self.rows.iter().map(|row: &[String; N]| row[column].chars().count()).max().unwrap_or(0);
        let columns: Vec<(usize, bool)> = (0..N).map(|column| (width(column), self.is_numeric(column))).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, (width, numeric)) in row.iter().zip(&columns) {
                line.push_str(&if *numeric { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") });
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A whole number with commas between thousands: `1,048,576`.
pub(super) fn grouped(value: usize) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in decimal units, to a tenth: `13.6 MB`.
pub(super) fn bytes(value: f64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")];
    // What rounds to a thousand of a unit is one of the next.
    match units.into_iter().find(|(unit, _)| value >= unit * 0.999_95) {
        Some((unit, name)) => format!("{:.1} {name}", value / unit),
        None => format!("{value:.0} B"),
    }
}

/// Seconds in the unit that suits them, to a tenth: `4.5 µs`.
pub(super) fn seconds(value: f64) -> String {
    let units = [(1.0, "s"), (1e-3, "ms")];
    match units.into_iter().find(|(unit, _)| value >= unit * 0.999_95) {
        Some((unit, name)) => format!("{:.1} {name}", value / unit),
        None => format!("{:.1} µs", value * 1e6),
    }
}

/// Numbers that follow one another as ranges: `0–2 5 7–9`.
pub(super) fn ranges(values: &[usize]) -> String {
    let mut text = String::new();
    for run in values.chunk_by(|a, b| a + 1 == *b) {
        let space = if text.is_empty() { "" } else { " " };
        match run {
            [one] => text.push_str(&format!("{space}{one}")),
            [first, .., last] => text.push_str(&format!("{space}{first}–{last}")),
            [] => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_aligned_to_the_right_and_words_to_the_left() {
        let mut table = Table::new(["what", "bytes", "who"]);
        table.row(["a".into(), "1,024".into(), "x".into()]);
        table.row(["bcdef".into(), NOTHING.into(), String::new()]);
        assert_eq!(table.to_string(), "what   bytes  who\na      1,024  x\nbcdef      –\n");
    }

    #[test]
    fn quantities_have_the_unit_that_suits_them() {
        assert_eq!([grouped(0), grouped(999), grouped(1_048_576)], ["0", "999", "1,048,576"]);
        assert_eq!([bytes(0.0), bytes(999.0), bytes(13_631_488.0)], ["0 B", "999 B", "13.6 MB"]);
        assert_eq!([bytes(999_960.0), bytes(2.5e12)], ["1.0 MB", "2.5 TB"]);
        assert_eq!([seconds(4.47e-6), seconds(0.0134), seconds(2.0)], ["4.5 µs", "13.4 ms", "2.0 s"]);
        assert_eq!([ranges(&[0, 1, 2, 5, 7, 8]), ranges(&[])], ["0–2 5 7–8", ""]);
    }
}
