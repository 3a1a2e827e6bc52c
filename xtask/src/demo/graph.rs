//! A graph of characters. Pure.

use crate::bench::curve::Curve;

/// Eighths of a character's height, from nothing to all.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Columns left of the graph, for the speed.
const MARGIN: usize = 10;

/// The time that a graph shows, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) from: f64,
    pub(super) to: f64,
}

/// What a column of the graph shows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Column {
    /// Bytes per second, on one of the hosts.
    Speed(Paint, f64),
    /// The process is nowhere.
    Frozen,
    /// Not seen yet.
    Unknown,
}

/// Colors by what they mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    /// Lines and numbers.
    Frame,
    Source,
    Frozen,
    Destination,
}

/// A part of a line.
pub(super) type Piece = (Paint, String);

/// Draws what is known of a process: lines from the top down, `width` wide.
pub(super) fn graph(
    curve: &Curve,
    span: Span,
    width: usize,
    height: usize,
    least_top: f64,
) -> Vec<Vec<Piece>> {
    let columns = columns(curve, span, width.saturating_sub(MARGIN).max(10));
    let top = columns.iter().fold(least_top, |most, column| match column {
        Column::Speed(_, speed) => most.max(*speed),
        _ => most,
    });
    let mut lines = Vec::new();
    for row in (0..height).rev() {
        let label = match row {
            row if row + 1 == height => format!("{:>4.0} MB/s ", top / 1e6),
            _ => " ".repeat(MARGIN),
        };
        let mut line = vec![(Paint::Frame, label)];
        for column in &columns {
            let (paint, character) = cell(*column, row, height, top);
            match line.last_mut() {
                Some((last, text)) if *last == paint => text.push(character),
                _ => line.push((paint, character.to_string())),
            }
        }
        lines.push(line);
    }
    lines.push(vec![(Paint::Frame, axis(span, columns.len()))]);
    lines
}

/// The highest speed that the graph would show.
pub(super) fn top(curve: &Curve, span: Span, width: usize) -> f64 {
    let columns = columns(curve, span, width.saturating_sub(MARGIN).max(10));
    columns.iter().fold(0.0, |most, column| match column {
        Column::Speed(_, speed) => most.max(*speed),
        _ => most,
    })
}

fn columns(curve: &Curve, span: Span, count: usize) -> Vec<Column> {
    let step = (span.to - span.from) / count as f64;
    let freeze = curve.freeze();
    let one = |number: usize| {
        let from = span.from + step * number as f64;
        let (middle, to) = (from + step / 2.0, from + step);
        let Some(speed) = curve.speed(from, to) else {
            return Column::Unknown;
        };
        match freeze {
            Some(freeze) if middle >= freeze.resumed => Column::Speed(Paint::Destination, speed),
            Some(freeze) if middle >= freeze.stopped => Column::Frozen,
            // As far as is known by now.
            None if speed <= 0.0 => Column::Frozen,
            _ => Column::Speed(Paint::Source, speed),
        }
    };
    (0..count).map(one).collect()
}

fn cell(column: Column, row: usize, height: usize, top: f64) -> (Paint, char) {
    match column {
        Column::Unknown => (Paint::Frame, ' '),
        Column::Frozen => (Paint::Frozen, '░'),
        Column::Speed(paint, speed) => {
            // Whatever moves at all is seen.
            let eighths = (speed / top * height as f64 * 8.0).round().max(1.0) as usize;
            let here = eighths.saturating_sub(row * 8).min(8);
            (paint, EIGHTHS[here])
        }
    }
}

/// Seconds below the columns, where there is room.
fn axis(span: Span, columns: usize) -> String {
    let step = (span.to - span.from) / columns as f64;
    let mut text = " ".repeat(MARGIN);
    let mut second = (span.from / 5.0).ceil() * 5.0;
    while second <= span.to {
        let column = MARGIN + ((second - span.from) / step).round() as usize;
        let label = format!("{second:.0} s");
        if column >= text.len() && column + label.len() <= MARGIN + columns {
            text += &" ".repeat(column - text.len());
            text += &label;
        }
        second += 5.0;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::curve::Point;

    /// 80 MB/s until 5, nothing until 10, then 10 MB/s; seen until 15.
    fn moved() -> Curve {
        let point = |at: i32, bytes: u64| Point {
            at: f64::from(at),
            bytes,
        };
        let source: Vec<_> = (-5..=5)
            .map(|at| point(at, (at + 5) as u64 * 80_000_000))
            .collect();
        let destination: Vec<_> = (9..=15)
            .map(|at| point(at, 800_000_000 + (at - 10).max(0) as u64 * 10_000_000))
            .collect();
        Curve::of(&source, &destination)
    }

    fn text(line: &[Piece]) -> String {
        line.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn columns_are_as_high_as_the_speed() {
        let span = Span {
            from: -5.0,
            to: 20.0,
        };
        let lines = graph(&moved(), span, MARGIN + 25, 2, 0.0);
        let rest = " ".repeat(5);
        assert_eq!(
            text(&lines[0]),
            format!("  80 MB/s ██████████░░░░░{rest}{rest}")
        );
        // A quarter of the lower half, for an eighth of the speed.
        assert_eq!(
            text(&lines[1]),
            format!("          ██████████░░░░░▂▂▂▂▂{rest}")
        );
        assert_eq!(
            text(&lines[2]).trim_end(),
            "          -5 s 0 s  5 s  10 s 15 s"
        );
        let paints: Vec<_> = lines[1].iter().map(|(paint, _)| *paint).collect();
        let (frame, there) = (Paint::Frame, Paint::Destination);
        assert_eq!(paints, [frame, Paint::Source, Paint::Frozen, there, frame]);
    }

    #[test]
    fn the_scale_can_be_that_of_another_graph() {
        let span = Span { from: 0.0, to: 5.0 };
        assert_eq!(top(&moved(), span, 20), 80e6);
        let lines = graph(&moved(), span, 20, 1, 160e6);
        assert_eq!(text(&lines[0]), " 160 MB/s ▄▄▄▄▄▄▄▄▄▄");
    }
}
