//! Pictures, as SVG. They need no font of this system: the viewer has one.

use std::fmt;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::curve::{Curve, Freeze};
use super::statistics::{Summary, histogram};

const FONT: &str = "sans-serif";
const GREY: RGBColor = RGBColor(0x60, 0x68, 0x70);
const FAINT: RGBColor = RGBColor(0xe4, 0xe7, 0xea);
/// On the host that the process leaves.
const BLUE: RGBColor = RGBColor(0x2f, 0x6f, 0xb5);
/// On the host that it arrives on.
const GREEN: RGBColor = RGBColor(0x2c, 0x9a, 0x5b);
/// While it is nowhere.
const RED: RGBColor = RGBColor(0xc8, 0x3c, 0x3c);

/// A row of a picture: what was measured in one way.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) title: String,
    pub(crate) numbers: Vec<f64>,
}

/// Histograms below each other, over one axis.
///
/// # Errors
/// When the file can't be written.
pub(crate) fn histograms(path: &Path, title: &str, axis: &str, rows: &[Row]) -> Result<()> {
    const BINS: usize = 60;
    let numbers = || rows.iter().flat_map(|row| &row.numbers);
    let end = numbers().fold(0.0_f64, |most, number| most.max(*number)) * 1.05;
    let bins = |row: &Row| histogram(&row.numbers, end, BINS);
    let most = rows.iter().flat_map(bins).max().unwrap_or(1);
    let height = 64 * rows.len() as u32 + 90;
    let draw = || -> Drawn {
        let root = SVGBackend::new(path, (860, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.titled(title, (FONT, 19))?;
        let areas = root.split_evenly((rows.len(), 1));
        for (number, (row, area)) in rows.iter().zip(&areas).enumerate() {
            let last = number + 1 == rows.len();
            let mut chart = ChartBuilder::on(area)
                .margin_right(20)
                .margin_top(4)
                .set_label_area_size(LabelAreaPosition::Left, 190)
                .set_label_area_size(LabelAreaPosition::Bottom, if last { 40 } else { 4 })
                .build_cartesian_2d(0.0..end, 0.0..most as f64)?;
            let mut mesh = chart.configure_mesh();
            mesh.disable_y_mesh()
                .y_labels(0)
                .axis_style(GREY)
                .bold_line_style(FAINT)
                .light_line_style(TRANSPARENT);
            if last {
                mesh.x_desc(axis).label_style((FONT, 13, &GREY));
            } else {
                mesh.x_labels(8).x_label_formatter(&|_| String::new());
            }
            mesh.draw()?;
            let width = end / BINS as f64;
            let bars = bins(row);
            let bars = bars.iter().enumerate().filter(|(_, count)| **count > 0);
            chart.draw_series(bars.map(|(bin, count)| {
                let left = bin as f64 * width;
                Rectangle::new([(left, 0.0), (left + width, *count as f64)], BLUE.filled())
            }))?;
            let mut label = row.title.clone();
            if let Some(summary) = Summary::of(&row.numbers) {
                let median = [(summary.median, 0.0), (summary.median, most as f64)];
                chart.draw_series([PathElement::new(median, RED.stroke_width(2))])?;
                label = format!("{label}\nmedian {:.1}", summary.median);
            }
            for (line, text) in label.lines().enumerate() {
                let style = match line {
                    0 => (FONT, 14, &BLACK).into_text_style(area),
                    _ => (FONT, 12, &GREY).into_text_style(area),
                };
                area.draw_text(text, &style, (10, 12 + 18 * line as i32))?;
            }
        }
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| failed(path, &error))
}

/// A line of the picture of figure 1.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) title: String,
    /// Number of the pass, and its megabytes per second.
    pub(crate) points: Vec<(i32, f64)>,
}

/// How fast each pass was.
///
/// # Errors
/// When the file can't be written.
pub(crate) fn passes(path: &Path, title: &str, lines: &[Line]) -> Result<()> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let top = points().fold(0.0_f64, |most, (_, speed)| most.max(*speed)) * 1.1;
    let first = points().map(|(number, _)| *number).min().unwrap_or(-1);
    let last = points().map(|(number, _)| *number).max().unwrap_or(0);
    let draw = || -> Drawn {
        let root = SVGBackend::new(path, (860, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, (FONT, 19))
            .margin(14)
            .set_label_area_size(LabelAreaPosition::Left, 60)
            .set_label_area_size(LabelAreaPosition::Bottom, 44)
            .build_cartesian_2d(f64::from(first) - 0.3..f64::from(last) + 0.3, 0.0..top)?;
        chart
            .configure_mesh()
            .x_labels((last - first + 1) as usize)
            .x_label_formatter(&|number| match *number as i32 {
                number if number < 0 => number.to_string(),
                number => format!("+{}", number + 1),
            })
            .x_desc("pass before and after the migration")
            .y_label_formatter(&|speed| format!("{speed:.0}"))
            .y_desc("MB/s")
            .axis_style(GREY)
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .label_style((FONT, 13, &GREY))
            .draw()?;
        let moved = [(-0.5, 0.0), (-0.5, top)];
        chart.draw_series([PathElement::new(moved, GREY.stroke_width(1))])?;
        for (line, color) in lines.iter().zip([RED, GREEN, BLUE].iter().cycle()) {
            let points: Vec<_> = line
                .points
                .iter()
                .map(|(number, speed)| (f64::from(*number), *speed))
                .collect();
            dotted(&mut chart, &line.title, &points, *color)?;
        }
        legend(&mut chart, 13)?;
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| failed(path, &error))
}

/// A chart whose axes have numbers.
type Numbers<'a, 'b, X, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>;

/// Draws a line with a dot at each of its points.
fn dotted<X: Ranged<ValueType = f64>, Y: Ranged<ValueType = f64>>(
    chart: &mut Numbers<'_, '_, X, Y>,
    title: &str,
    points: &[(f64, f64)],
    color: RGBColor,
) -> Drawn {
    let points = points.iter().copied();
    chart
        .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?
        .label(title)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
    chart.draw_series(points.map(|at| Circle::new(at, 4, color.filled())))?;
    Ok(())
}

/// Says which line is which.
fn legend<'b, X: Ranged<ValueType = f64>, Y: Ranged<ValueType = f64>>(
    chart: &mut Numbers<'b, 'b, X, Y>,
    size: u32,
) -> Drawn {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(FAINT)
        .label_font((FONT, size))
        .draw()?;
    Ok(())
}

/// What share of reads hit, by the MiB that were read ahead.
#[derive(Debug)]
pub(crate) struct Shares {
    pub(crate) title: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Lines over one axis.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) lines: Vec<Shares>,
}

/// Panels below each other; their horizontal axes are logarithmic.
///
/// # Errors
/// When the file can't be written.
pub(crate) fn shares(path: &Path, title: &str, panels: &[Panel]) -> Result<()> {
    const COLORS: [RGBColor; 7] = [
        GREEN,
        RGBColor(0x8c, 0xc6, 0x5a),
        BLUE,
        RED,
        RGBColor(0xc9, 0x8a, 0x1b),
        RGBColor(0x8e, 0x5b, 0xb0),
        GREY,
    ];
    let draw = || -> Drawn {
        let root = SVGBackend::new(path, (860, 40 + 300 * panels.len() as u32)).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.titled(title, (FONT, 19))?;
        for (panel, area) in panels.iter().zip(root.split_evenly((panels.len(), 1))) {
            let budgets = || panel.lines.iter().flat_map(|line| &line.points);
            let least = budgets().fold(f64::INFINITY, |least, (at, _)| least.min(*at));
            let most = budgets().fold(0.0_f64, |most, (at, _)| most.max(*at));
            let mut chart = ChartBuilder::on(&area)
                .caption(&panel.title, (FONT, 15))
                .margin_right(20)
                .set_label_area_size(LabelAreaPosition::Left, 60)
                .set_label_area_size(LabelAreaPosition::Bottom, 34)
                .build_cartesian_2d((least..most).log_scale(), 0.0..1.0)?;
            chart
                .configure_mesh()
                .x_label_formatter(&|at| format!("{at:.0} MiB"))
                .y_label_formatter(&|share| format!("{:.0} %", 100.0 * share))
                .axis_style(GREY)
                .bold_line_style(FAINT)
                .light_line_style(TRANSPARENT)
                .label_style((FONT, 12, &GREY))
                .draw()?;
            for (line, color) in panel.lines.iter().zip(COLORS.iter().cycle()) {
                let points = line.points.iter().copied();
                chart
                    .draw_series(LineSeries::new(points, color.stroke_width(2)))?
                    .label(line.title)
                    .legend(move |(x, y)| {
                        PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2))
                    });
            }
            legend(&mut chart, 12)?;
        }
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| failed(path, &error))
}

/// How something grows with something else.
#[derive(Debug)]
pub(crate) struct Growth {
    pub(crate) title: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Lines over axes of these names, both logarithmic: what grows linearly is as steep as
/// the diagonals.
///
/// # Errors
/// When the file can't be written.
pub(crate) fn growth(
    path: &Path,
    title: &str,
    (x_axis, y_axis): (&str, &str),
    lines: &[Growth],
) -> Result<()> {
    const COLORS: [RGBColor; 4] = [BLUE, RED, GREEN, GREY];
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let range = |of: fn((f64, f64)) -> f64| {
        let least = points().map(of).fold(f64::INFINITY, f64::min);
        let most = points().map(of).fold(0.0, f64::max);
        (least / 1.5..most * 1.5).log_scale()
    };
    let number = |number: &f64| match *number {
        small if small < 1.0 => format!("{small:.2}"),
        large => format!("{large:.0}"),
    };
    let draw = || -> Drawn {
        let root = SVGBackend::new(path, (860, 460)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, (FONT, 19))
            .margin(14)
            .set_label_area_size(LabelAreaPosition::Left, 60)
            .set_label_area_size(LabelAreaPosition::Bottom, 44)
            .build_cartesian_2d(range(|(x, _)| x), range(|(_, y)| y))?;
        chart
            .configure_mesh()
            .x_desc(x_axis)
            .y_desc(y_axis)
            .x_label_formatter(&number)
            .y_label_formatter(&number)
            .axis_style(GREY)
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .label_style((FONT, 13, &GREY))
            .draw()?;
        for (line, color) in lines.iter().zip(COLORS.iter().cycle()) {
            dotted(&mut chart, line.title, &line.points, *color)?;
        }
        legend(&mut chart, 13)?;
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| failed(path, &error))
}

/// A process that was moved, and how that is called.
#[derive(Debug)]
pub(crate) struct Story<'a> {
    pub(crate) title: &'a str,
    pub(crate) curve: &'a Curve,
}

/// How fast processes read, below each other, over one time.
///
/// # Errors
/// When the file can't be written.
pub(crate) fn stories(
    path: &Path,
    title: &str,
    from: f64,
    to: f64,
    stories: &[Story<'_>],
) -> Result<()> {
    const STEP: f64 = 0.25;
    let series = |story: &Story<'_>| -> Vec<(f64, f64)> {
        let steps = ((to - from) / STEP) as usize;
        let at = (0..steps).map(|step| from + step as f64 * STEP);
        at.filter_map(|at| Some((at, story.curve.speed(at, at + STEP)? / 1e6)))
            .collect()
    };
    let all = stories.iter().flat_map(series);
    let top = all.fold(0.0_f64, |most, (_, speed)| most.max(speed)) * 1.1;
    let draw = || -> Drawn {
        let root =
            SVGBackend::new(path, (900, 40 + 190 * stories.len() as u32)).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.titled(title, (FONT, 19))?;
        for (story, area) in stories.iter().zip(root.split_evenly((stories.len(), 1))) {
            let mut chart = ChartBuilder::on(&area)
                .margin_right(20)
                .margin_top(26)
                .set_label_area_size(LabelAreaPosition::Left, 64)
                .set_label_area_size(LabelAreaPosition::Bottom, 34)
                .build_cartesian_2d(from..to, 0.0..top)?;
            chart
                .configure_mesh()
                .y_labels(5)
                .x_label_formatter(&|at| format!("{at:.0} s"))
                .y_label_formatter(&|speed| format!("{speed:.0} MB/s"))
                .axis_style(GREY)
                .bold_line_style(FAINT)
                .light_line_style(TRANSPARENT)
                .label_style((FONT, 12, &GREY))
                .draw()?;
            let freeze = story.curve.freeze();
            let points = series(story);
            let (stopped, resumed) = match freeze {
                Some(Freeze {
                    stopped, resumed, ..
                }) => (stopped, resumed),
                None => (to, to),
            };
            chart.draw_series([Rectangle::new(
                [(stopped, 0.0), (resumed, top)],
                RED.mix(0.18).filled(),
            )])?;
            // Up to the very moments, beyond which there is nothing to read.
            let edge =
                |at: f64, nearest: Option<&(f64, f64)>| nearest.map(|(_, speed)| (at, *speed));
            let before = points.iter().take_while(|(at, _)| at + STEP <= stopped);
            let mut before: Vec<_> = before.copied().collect();
            before.extend(edge(stopped.min(to), before.last()));
            let after = points.iter().skip_while(|(at, _)| *at < resumed);
            let mut after: Vec<_> = after.copied().collect();
            after.splice(0..0, edge(resumed, after.first()));
            for (series, color) in [(before, BLUE), (after, GREEN)] {
                chart.draw_series(
                    AreaSeries::new(series, 0.0, color.mix(0.25))
                        .border_style(color.stroke_width(2)),
                )?;
            }
            let order = [(0.0, 0.0), (0.0, top)];
            chart.draw_series([PathElement::new(order, GREY.stroke_width(1))])?;
            let style = (FONT, 15, &BLACK).into_text_style(&area);
            area.draw_text(story.title, &style, (62, 6))?;
            let label = |at: f64, y: i32, text: &str, color: RGBColor| {
                let (x, _) = chart.backend_coord(&(at, 0.0));
                let (left, _) = area.get_base_pixel();
                let style = (FONT, 12, &color).into_text_style(&area);
                area.draw_text(text, &style, (x - left + 4, y))
            };
            label(0.0, 46, "order", GREY)?;
            if let Some(freeze) = freeze {
                label(from, 30, "on the source", BLUE)?;
                label(
                    stopped,
                    62,
                    &format!("frozen {:.1} s", freeze.seconds()),
                    RED,
                )?;
                label(resumed, 30, "on the destination", GREEN)?;
            }
        }
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| failed(path, &error))
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn failed(path: &Path, error: &dyn fmt::Display) -> anyhow::Error {
    anyhow!("failed to draw {}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::curve::Point;
    use super::*;

    fn drawn(draw: impl FnOnce(&Path) -> Result<()>) -> String {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("picture.svg");
        draw(&path).expect("a picture");
        fs::read_to_string(&path).expect("a text")
    }

    #[test]
    fn a_histogram_has_a_bar_for_each_bin_that_is_hit() {
        let row = |title: &str, numbers: &[f64]| Row {
            title: title.into(),
            numbers: numbers.into(),
        };
        let rows = [row("one", &[1.0, 1.0, 3.0]), row("two", &[2.0])];
        let svg = drawn(|path| histograms(path, "Title", "GB", &rows));
        let fill = format!("fill=\"#{:02X}{:02X}{:02X}\"", BLUE.0, BLUE.1, BLUE.2);
        assert_eq!(svg.matches(&fill).count(), 3, "{svg}");
        for text in ["Title", "one", "two", "median 1.0", "GB"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }

    #[test]
    fn passes_after_the_migration_are_counted_from_one() {
        let line = Line {
            title: "CRIU alone".into(),
            points: vec![(-1, 600.0), (0, 15.0), (1, 600.0)],
        };
        let svg = drawn(|path| passes(path, "Title", &[line]));
        for text in ["CRIU alone", "-1", "+1", "+2"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }

    #[test]
    fn shares_have_a_panel_for_each_workload() {
        let panel = |title: &str| Panel {
            title: title.into(),
            lines: vec![Shares {
                title: "oracle",
                points: vec![(1.0, 0.2), (10.0, 0.5), (100.0, 1.0)],
            }],
        };
        let svg = drawn(|path| shares(path, "Title", &[panel("zipf"), panel("scan")]));
        for text in ["Title", "zipf", "scan", "oracle", "100 %", "10 MiB"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }

    #[test]
    fn growth_has_a_circle_for_each_point() {
        let line = |title, points: &[(f64, f64)]| Growth {
            title,
            points: points.into(),
        };
        let lines = [
            line("large", &[(1.0, 0.7), (16.0, 11.0), (256.0, 90.0)]),
            line("small", &[(0.1, 0.5)]),
        ];
        let svg = drawn(|path| growth(path, "Title", ("GiB", "MiB"), &lines));
        assert_eq!(svg.matches("<circle").count(), 4, "{svg}");
        for text in ["Title", "large", "small", "GiB", "MiB"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }

    #[test]
    fn a_story_tells_where_the_process_was() {
        let points = |range: std::ops::RangeInclusive<i32>| -> Vec<Point> {
            let point = |at: i32| Point {
                at: f64::from(at),
                bytes: (at + 4) as u64 * 1_000_000,
            };
            range.map(point).collect()
        };
        let curve = Curve::of(&points(-4..=0), &points(2..=6));
        let story = Story {
            title: "a move",
            curve: &curve,
        };
        let svg = drawn(|path| stories(path, "Title", -4.0, 6.0, &[story]));
        for text in ["a move", "on the source", "frozen", "on the destination"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }
}
