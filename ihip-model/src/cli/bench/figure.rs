//! Time against context as an SVG: both axes logarithmic, a line for each pipeline, phase, refresh and method.

use std::fmt::Write;

use super::report::Row;
use crate::cli::table::seconds;

const WIDTH: f64 = 840.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 330.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 50.0;
/// Colours that are told apart without red and green.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#a0a000"];

/// The figure of `rows`.
pub(super) fn svg(rows: &[Row]) -> String {
    let axes = Axes {
        contexts: range(rows.iter().map(|row| row.context as f64)),
        times: range(rows.iter().map(|row| row.median_us)),
    };
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    axes.grid(&mut text, rows);
    for (index, (name, points)) in lines(rows).into_iter().enumerate() {
        axes.line(&mut text, index, &name, points);
    }
    let _ = writeln!(
        text,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">tokens of context</text>\n</svg>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 10.0
    );
    text
}

/// Rows by the name of their line, in the order in which lines first come.
fn lines(rows: &[Row]) -> Vec<(String, Vec<&Row>)> {
    let mut lines: Vec<(String, Vec<&Row>)> = Vec::new();
    for row in rows {
        let method = if row.method == "ihip" { String::new() } else { format!("; {}", row.method) };
        let name = format!("{} {}, {}{method}", row.phase, row.pipeline, row.refresh);
        match lines.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push(row),
            None => lines.push((name, vec![row])),
        }
    }
    lines
}

/// Least and greatest context in tokens, and time in microseconds.
struct Axes {
    contexts: (f64, f64),
    times: (f64, f64),
}

impl Axes {
    fn x(&self, context: usize) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * place(context as f64, self.contexts)
    }

    fn y(&self, time: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * place(time, self.times)
    }

    /// Draws a line for each context, and for each power of ten of time.
    fn grid(&self, text: &mut String, rows: &[Row]) {
        let mut contexts: Vec<usize> = rows.iter().map(|row| row.context).collect();
        contexts.sort_unstable();
        contexts.dedup();
        for context in contexts {
            let (at, below) = (self.x(context), HEIGHT - BOTTOM);
            let _ = writeln!(
                text,
                "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{below}\" stroke=\"#dddddd\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}K</text>",
                below + 18.0,
                context / 1024
            );
        }
        let mut tick = 10_f64.powf(self.times.0.log10().ceil());
        while tick <= self.times.1 {
            let at = self.y(tick);
            let _ = writeln!(
                text,
                "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                seconds(tick / 1e6)
            );
            tick *= 10.0;
        }
    }

    /// Draws the line of `points`, the `index`-th of the figure, and its name.
    fn line(&self, text: &mut String, index: usize, name: &str, mut points: Vec<&Row>) {
        let colour = COLOURS[index % COLOURS.len()];
        points.sort_by_key(|row| row.context);
        let path: Vec<String> =
            points.iter().map(|row| format!("{:.1},{:.1}", self.x(row.context), self.y(row.median_us))).collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for point in &path {
            let (x, y) = point.split_once(',').unwrap_or_default();
            let _ = writeln!(text, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let at = TOP + 16.0 * (index as f64 + 0.5);
        let _ = writeln!(text, "<text x=\"{}\" y=\"{at:.1}\" fill=\"{colour}\">{name}</text>", WIDTH - RIGHT + 12.0);
    }
}

/// Least and greatest, apart from each other.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    if low < high { (low, high) } else { (low / 2.0, low * 2.0) }
}

/// Where a value lies in a range, from 0 to 1.
fn place(value: f64, (low, high): (f64, f64)) -> f64 {
    (value / low).ln() / (high / low).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_through_its_points_in_the_order_of_contexts() {
        let row = |context, time| Row::new("decode", context, "all".to_owned(), "Paper3k", &[time]);
        let text = svg(&[row(4096, 1e-3), row(1024, 1e-5), row(2048, 1e-4)]);
        assert!(text.contains("points=\"70.0,410.0 290.0,215.0 510.0,20.0\""), "{text}");
        assert!(
            text.contains(">decode Paper3k, all<") && text.contains(">4K<") && text.contains(">100.0 µs<"),
            "{text}"
        );
    }

    #[test]
    fn what_others_measured_has_lines_of_its_own() {
        let row = |context| Row::new("decode", context, "all".to_owned(), "Paper3k", &[1e-3]);
        let mut rows = vec![row(1024), row(2048)];
        rows.extend([row(1024), row(2048)].map(|row| Row { method: "authors".to_owned(), ..row }));
        let text = svg(&rows);
        assert_eq!(text.matches("<polyline").count(), 2, "{text}");
        assert!(text.contains(">decode Paper3k, all; authors<"), "{text}");
    }
}
