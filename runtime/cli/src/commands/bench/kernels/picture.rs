//! The roofline picture: roofs as lines, products as dots, both axes logarithmic (Williams, Waterman and Patterson 2009,
//! doi 10.1145/1498765.1498785).

use super::{
    machine::{Level, Roofs},
    report::{Report, Row, figure},
};
use crate::ui;
use std::fmt::Write;

const WIDTH: f64 = 1140.0;
const HEIGHT: f64 = 680.0;
/// The plot's left, top, right and bottom edge.
const PLOT: [f64; 4] = [80.0, 76.0, 850.0, 614.0];
/// Distance of lines in the legend.
const PITCH: f64 = 22.0;
const DOT: f64 = 9.5;

/// Colours that people with colour blindness can tell apart, too (Okabe and Ito 2008), then some more.
const COLOURS: [&str; 10] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b4ab8", "#8c6d31", "#c0392b", "#555555"];
const ROOF: &str = "#3c4352";
/// The white rim that keeps words over lines readable.
const RIM: &str = "fill=\"#fff\" stroke=\"#fff\" stroke-width=\"4\" stroke-linejoin=\"round\"";

/// A logarithmic axis: values from `low` to `high` between two positions.
#[derive(Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        self.from + (value / self.low).ln() / (self.high / self.low).ln() * (self.to - self.from)
    }

    /// 1, 2 and 5 times the powers of ten in its range.
    fn ticks(&self) -> Vec<f64> {
        let powers = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let ticks = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
        ticks.filter(|tick| (self.low..=self.high).contains(tick)).collect()
    }
}

/// Dots that belong together.
struct Series<'a> {
    rows: Vec<&'a Row>,
    colour: &'static str,
}

/// Draws a report as SVG.
pub fn draw(report: &Report) -> String {
    let series = series(&report.points);
    let (x, y) = axes(report);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    let isas = report.roofs.iter().map(|roofs| roofs.isa).collect::<Vec<_>>().join(", ");
    text(&mut out, PLOT[0], 32.0, "font-size=\"20\" font-weight=\"bold\"", &format!("Roofline of {}", report.cpu_info));
    let subtitle = format!(
        "{}, {isas} kernels of rustai {}. A dot is a matrix product; the number in it is M, its tokens.",
        ui::counted(report.n_threads, "thread"),
        report.build_version
    );
    text(&mut out, PLOT[0], 54.0, "fill=\"#555\"", &subtitle);
    if let Some(missing) = &report.missing {
        text(&mut out, PLOT[0], 70.0, "fill=\"#555\"", &missing.sentence());
    }
    grid(&mut out, x, y);
    for (index, roofs) in report.roofs.iter().enumerate() {
        draw_roofs(&mut out, roofs, index, x, y);
    }
    for series in &series {
        dots(&mut out, series, x, y);
    }
    legend(&mut out, &series);
    out.push_str("</svg>\n");
    out
}

/// Rows of the same type, matrix, place and instruction set, in the order of the report; one colour per type and
/// instruction set.
fn series(points: &[Row]) -> Vec<Series<'_>> {
    let mut kinds: Vec<(&str, &str)> = Vec::new();
    let mut series: Vec<Series<'_>> = Vec::new();
    let key = |row: &Row| (row.dtype, row.isa, row.n, row.k, row.weights_in);
    for row in points {
        let kind = (row.dtype, row.isa);
        let index = kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
            kinds.push(kind);
            kinds.len() - 1
        });
        match series.last_mut() {
            Some(last) if key(last.rows[0]) == key(row) => last.rows.push(row),
            _ => series.push(Series { rows: vec![row], colour: COLOURS[index % COLOURS.len()] }),
        }
    }
    series
}

/// Axes that hold all dots and the corners of all roofs.
fn axes(report: &Report) -> (Axis, Axis) {
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values
            .filter(|v| v.is_finite() && *v > 0.0)
            .fold((f64::MAX, f64::MIN_POSITIVE), |(l, h), v| (l.min(v), h.max(v)))
    };
    let (left, right) = ends(&mut report.points.iter().map(|row| row.intensity));
    let peaks = report.roofs.iter().flat_map(|roofs| &roofs.peaks);
    let (_, top) =
        ends(&mut peaks.map(|peak| peak.macs_per_second).chain(report.points.iter().map(|row| row.roof_macs_per_s)));
    let (bottom, _) = ends(&mut report.points.iter().map(|row| row.macs_per_s));
    let [x0, y0, x1, y1] = PLOT;
    // A report without points still gets axes.
    let (left, right, bottom) = if left > right { (1.0, 10.0, top / 100.0) } else { (left, right, bottom) };
    (
        Axis { low: left / 2.0, high: right * 2.0, from: x0, to: x1 },
        Axis { low: bottom / 2.5e9, high: top * 2.2 / 1e9, from: y1, to: y0 },
    )
}

fn grid(out: &mut String, x: Axis, y: Axis) {
    let [x0, y0, x1, y1] = PLOT;
    let _ = writeln!(out, "<g stroke=\"#e4e7ec\">");
    for tick in x.ticks() {
        let _ = writeln!(out, "<path d=\"M{0:.1} {y0}V{y1}\"/>", x.at(tick));
    }
    for tick in y.ticks() {
        let _ = writeln!(out, "<path d=\"M{x0} {0:.1}H{x1}\"/>", y.at(tick));
    }
    let _ = writeln!(
        out,
        "</g>\n<rect x=\"{x0}\" y=\"{y0}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#99a\"/>",
        x1 - x0,
        y1 - y0
    );
    for tick in x.ticks() {
        text(out, x.at(tick), y1 + 18.0, "text-anchor=\"middle\" fill=\"#555\"", &tick_name(tick));
    }
    for tick in y.ticks() {
        text(out, x0 - 8.0, y.at(tick) + 4.5, "text-anchor=\"end\" fill=\"#555\"", &tick_name(tick));
    }
    text(out, (x0 + x1) / 2.0, y1 + 46.0, "text-anchor=\"middle\"", "multiply-adds per byte of weights");
    let (cx, cy) = (x0 - 52.0, (y0 + y1) / 2.0);
    let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 {cx:.1} {cy:.1})\"");
    text(out, cx, cy, &turned, "10⁹ multiply-adds per second");
}

fn tick_name(tick: f64) -> String {
    if tick < 1.0 { format!("{}", (tick * 1000.0).round() / 1000.0) } else { format!("{tick:.0}") }
}

/// Bandwidths rise with intensity up to the highest peak; peaks are level from the fastest bandwidth on.
fn draw_roofs(out: &mut String, roofs: &Roofs, index: usize, x: Axis, y: Axis) {
    let dashes = if index == 0 { "" } else { " stroke-dasharray=\"7 4\"" };
    let top = roofs.peaks.iter().map(|peak| peak.macs_per_second / 1e9).fold(0.0, f64::max);
    let top = if top > 0.0 { top } else { y.high };
    let fastest = roofs.reads.iter().map(|read| read.roof() / 1e9).fold(0.0, f64::max);
    // Pixels per factor e on both axes give the slope of all bandwidths.
    let slope = (y.to - y.from) / (y.high / y.low).ln() / ((x.to - x.from) / (x.high / x.low).ln());
    let angle = slope.atan().to_degrees();
    for (nth, read) in roofs.reads.iter().enumerate() {
        let rate = read.roof() / 1e9;
        let start = x.low.max(y.low / rate);
        let end = x.high.min(top / rate);
        if start >= end {
            continue;
        }
        line(out, [x.at(start), y.at(rate * start), x.at(end), y.at(rate * end)], dashes);
        let (tx, ty) = (x.at(start) + 14.0, y.at(rate * start) + 14.0 * slope);
        let turned = format!("transform=\"rotate({angle:.1} {tx:.1} {ty:.1})\"");
        // The fastest is written above its line and the others below, so that neighbours leave room for each other.
        let ty = if nth == 0 { ty - 7.0 } else { ty + 17.0 };
        label(out, tx, ty, &turned, &format!("{} {} GB/s", read.level.name(), figure(rate)));
    }
    for peak in &roofs.peaks {
        let rate = peak.macs_per_second / 1e9;
        let start = if fastest > 0.0 { (rate / fastest).max(x.low) } else { x.low };
        line(out, [x.at(start.min(x.high)), y.at(rate), x.at(x.high), y.at(rate)], dashes);
        let words = format!("{}: {} G MAC/s", peak.instruction, figure(rate));
        label(out, x.to - 8.0, y.at(rate) - 7.0, "text-anchor=\"end\"", &words);
    }
}

fn line(out: &mut String, [x0, y0, x1, y1]: [f64; 4], dashes: &str) {
    let _ = writeln!(
        out,
        "<path d=\"M{x0:.1} {y0:.1}L{x1:.1} {y1:.1}\" stroke=\"{ROOF}\" stroke-width=\"2.5\" fill=\"none\"{dashes}/>"
    );
}

fn dots(out: &mut String, series: &Series<'_>, x: Axis, y: Axis) {
    let Series { rows, colour } = series;
    let places: Vec<(f64, f64)> = rows.iter().map(|row| (x.at(row.intensity), y.at(row.macs_per_s / 1e9))).collect();
    let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
    let hot = rows[0].weights_in != Level::Memory;
    let dashes = if hot { " stroke-dasharray=\"3 3\"" } else { "" };
    let _ = writeln!(
        out,
        "<path d=\"M{}\" stroke=\"{colour}\" stroke-width=\"1.4\" fill=\"none\" opacity=\"0.75\"{dashes}/>",
        path.join("L")
    );
    for (row, (x, y)) in rows.iter().zip(places) {
        let (fill, ink) = if hot { ("#fff", *colour) } else { (*colour, "#fff") };
        let _ = writeln!(
            out,
            "<g><title>{}</title><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{DOT}\" fill=\"{fill}\" stroke=\"{}\" \
             stroke-width=\"1.6\"/><text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"9\" text-anchor=\"middle\" fill=\"{ink}\">{}</text></g>",
            escape(&format!(
                "{} {} M = {}, {} x {}, {}: {} G MAC/s, {:.0} % of the roof",
                row.dtype,
                row.isa,
                row.m,
                row.n,
                row.k,
                row.weights_in.name(),
                figure(row.macs_per_s / 1e9),
                row.percent_of_roof
            )),
            if hot { colour } else { "#fff" },
            y + 3.2,
            row.m
        );
    }
}

/// A line per series: its type and place, and what part of its roof the first and the last number of tokens reach.
fn legend(out: &mut String, series: &[Series<'_>]) {
    let x = PLOT[2] + 26.0;
    let mut y = PLOT[1] + 10.0;
    let bottom = HEIGHT - 20.0;
    let several = series.iter().any(|one| one.rows[0].isa != series[0].rows[0].isa);
    let mut heading = None;
    for (index, Series { rows, colour }) in series.iter().enumerate() {
        let (first, last) = (rows[0], rows[rows.len() - 1]);
        let place = (first.n, first.k, first.weights_in);
        if y + 2.0 * PITCH > bottom {
            text(out, x, y, "fill=\"#555\"", &format!("and {} more", series.len() - index));
            return;
        }
        if heading != Some(place) {
            if heading.is_some() {
                y += PITCH / 2.0;
            }
            heading = Some(place);
            let words = format!("{} x {}, weights in {}", first.n, first.k, first.weights_in.name());
            text(out, x, y, "font-weight=\"bold\"", &words);
            y += PITCH - 4.0;
            text(out, x + 224.0, y, "text-anchor=\"end\" font-size=\"11\" fill=\"#555\"", "% of roof (at M)");
            y += PITCH;
        }
        let hot = first.weights_in != Level::Memory;
        let fill = if hot { "#fff" } else { colour };
        let _ = writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"6.5\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
            x + 7.0,
            y - 4.5
        );
        let name = if several { format!("{} {}", first.dtype, first.isa) } else { first.dtype.to_owned() };
        text(out, x + 22.0, y, "", &name);
        let percent = if rows.len() == 1 {
            format!("{:.0} ({})", first.percent_of_roof, first.m)
        } else {
            format!("{:.0} ({}) – {:.0} ({})", first.percent_of_roof, first.m, last.percent_of_roof, last.m)
        };
        text(out, x + 224.0, y, "text-anchor=\"end\"", &percent);
        y += PITCH;
    }
}

fn text(out: &mut String, x: f64, y: f64, attributes: &str, words: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{}</text>", escape(words));
}

/// Words of a roof, over its rim. They are written twice, since not every program that shows SVG can draw the outline of a
/// text before its inside (`paint-order`); CairoSVG covers the inside.
fn label(out: &mut String, x: f64, y: f64, attributes: &str, words: &str) {
    text(out, x, y, &format!("{attributes} {RIM}"), words);
    text(out, x, y, &format!("{attributes} fill=\"{ROOF}\""), words);
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::kernels::report::tests::sample;

    #[test]
    fn axes_are_logarithmic_and_ticks_are_round() {
        let axis = Axis { low: 0.5, high: 50.0, from: 0.0, to: 200.0 };
        assert!((axis.at(5.0) - 100.0).abs() < 1e-9);
        assert_eq!(
            axis.ticks().iter().map(|tick| tick_name(*tick)).collect::<Vec<_>>(),
            ["0.5", "1", "2", "5", "10", "20", "50"]
        );
    }

    #[test]
    fn roofs_dots_and_legend_are_drawn_inside_the_picture() {
        let report = sample();
        let picture = draw(&report);
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        assert!(picture.contains("memory 2.00 GB/s") && picture.contains("a &amp; b: 100 G MAC/s"), "{picture}");
        assert_eq!(picture.matches("<title>").count(), report.points.len());
        assert_eq!(picture.matches("<text").count(), picture.matches("</text>").count());
        let numbers = |name: &str| {
            let after: Vec<f64> = picture
                .split(&format!(" {name}=\""))
                .skip(1)
                .map(|rest| rest.split('"').next().unwrap_or_default().parse().unwrap())
                .collect();
            assert!(!after.is_empty());
            after
        };
        assert!(numbers("cx").into_iter().chain(numbers("x")).all(|x| (0.0..=WIDTH).contains(&x)));
        assert!(numbers("cy").into_iter().chain(numbers("y")).all(|y| (0.0..=HEIGHT).contains(&y)));
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
    }

    #[test]
    fn labels_of_roofs_are_drawn_over_their_rims_without_paint_order() {
        let picture = draw(&sample());
        assert!(!picture.contains("paint-order"), "CairoSVG ignores it");
        let labels: Vec<&str> = picture.lines().filter(|line| line.contains(">memory 2.00 GB/s<")).collect();
        assert_eq!(labels.len(), 2, "{picture}");
        assert!(labels[0].contains("stroke=\"#fff\"") && !labels[1].contains("stroke"), "{labels:?}");
    }

    #[test]
    fn an_early_end_is_written_into_the_picture() {
        let report = Report {
            missing: Some(super::super::report::Missing { points: 3, of: 9, types: vec!["F16"] }),
            ..sample()
        };
        assert!(draw(&report).contains("3 of 9 rows are missing, all of F16 among them"));
    }

    #[test]
    fn nothing_measured_still_draws() {
        let mut report = sample();
        report.points.clear();
        report.roofs.clear();
        assert!(!draw(&report).contains("NaN"));
    }
}
