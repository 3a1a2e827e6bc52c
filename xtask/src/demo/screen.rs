//! Showing a graph that grows: in place on a terminal, line by line elsewhere.

use std::env;
use std::io::{self, IsTerminal};

use super::graph::{Paint, Piece, Span, graph, top};
use crate::bench::curve::Curve;

/// Lines of the graph.
const HEIGHT: usize = 7;

/// Wider than that, it would only look stretched.
const MAX_WIDTH: usize = 100;

/// Where nobody knows better.
const WIDTH: usize = 80;

/// Standard output, and what is on it.
#[derive(Debug)]
pub(super) struct Screen {
    live: bool,
    color: bool,
    /// Lines of the last drawing, which the next one covers.
    drawn: usize,
    /// The second that was last told, where drawings can't be covered.
    second: Option<i64>,
    /// Bytes per second at the top of all graphs so far, so that they compare.
    top: f64,
}

impl Screen {
    pub(super) fn new() -> Self {
        let live = io::stdout().is_terminal();
        let is_set = |key: &str| env::var_os(key).is_some_and(|value| !value.is_empty());
        Self {
            live,
            // https://no-color.org
            color: live && !is_set("NO_COLOR"),
            drawn: 0,
            second: None,
            top: 0.0,
        }
    }

    /// A line that the next drawing covers; nothing where that can't be.
    pub(super) fn note(&mut self, text: &str) {
        if self.live {
            self.cover(&[text.to_owned()]);
        }
    }

    /// What is known by now. Elsewhere than on a terminal, a line every second.
    pub(super) fn draw(&mut self, span: Span, curve: &Curve, state: &str) {
        if self.live {
            let lines = self.lines(span, curve, state);
            self.cover(&lines);
            return;
        }
        let Some(end) = curve.end() else {
            return;
        };
        let second = end.floor() as i64;
        if self.second != Some(second) {
            self.second = Some(second);
            println!("{second:>4} s  {state}");
        }
    }

    /// The whole of it, which stays.
    pub(super) fn last(&mut self, span: Span, curve: &Curve, state: &str) {
        let lines = self.lines(span, curve, state);
        self.cover(&lines);
        (self.drawn, self.second) = (0, None);
        self.top = self.top.max(top(curve, span, width()));
    }

    /// For a title.
    pub(super) fn bold(&self, text: &str) -> String {
        match self.color {
            true => format!("\x1b[1m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn lines(&self, span: Span, curve: &Curve, state: &str) -> Vec<String> {
        let graph = graph(curve, span, width(), HEIGHT, self.top);
        let mut lines: Vec<String> = graph.iter().map(|line| self.paint(line)).collect();
        lines.push(format!("          {state}"));
        lines
    }

    fn paint(&self, line: &[Piece]) -> String {
        let piece = |(paint, text): &Piece| match (self.color, paint) {
            (false, _) | (_, Paint::Frame) => text.clone(),
            (_, Paint::Source) => format!("\x1b[34m{text}\x1b[0m"),
            (_, Paint::Frozen) => format!("\x1b[31m{text}\x1b[0m"),
            (_, Paint::Destination) => format!("\x1b[32m{text}\x1b[0m"),
        };
        line.iter().map(piece).collect()
    }

    /// Puts lines where the last ones were.
    fn cover(&mut self, lines: &[String]) {
        let mut text = String::new();
        if self.live && self.drawn > 0 {
            // Up to the first of them, and away with all.
            text += &format!("\x1b[{}A\x1b[J", self.drawn);
        }
        for line in lines {
            text += line;
            text.push('\n');
        }
        print!("{text}");
        self.drawn = lines.len();
    }
}

fn width() -> usize {
    let width = terminal_size::terminal_size().map_or(WIDTH, |(width, _)| width.0.into());
    // A full line would make some terminals begin another.
    width.saturating_sub(1).clamp(30, MAX_WIDTH)
}
