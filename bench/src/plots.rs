//! Bar charts as SVG: what the tables say, for those who look first.

use std::fmt::Write;

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What it stands for.
    pub label: String,
    /// How long it is.
    pub value: f64,
    /// Where a thin line over its end goes from and to.
    pub range: (f64, f64),
    /// What is written behind it.
    pub text: String,
    /// Whether it is somebody else's: what the others are compared with.
    pub peer: bool,
}

/// Bars below each other, of the same unit.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// Under the title: the unit, and what is better.
    pub subtitle: String,
    /// From top to bottom.
    pub bars: Vec<Bar>,
    /// A value that is aimed for, as a dashed line.
    pub aim: Option<f64>,
}

const WIDTH: f64 = 760.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 34.0;
const ROW: f64 = 28.0;
const BAR: f64 = 16.0;
/// Of a letter of the labels, about.
const LETTER: f64 = 7.2;
/// For what is written behind a bar.
const TEXT: f64 = 150.0;
const OURS: &str = "#2a6fb0";
const PEER: &str = "#9aa5b1";

impl Chart {
    /// The chart as an SVG document.
    pub fn svg(&self) -> String {
        let left = 24.0 + LETTER * self.bars.iter().map(|bar| bar.label.len()).max().unwrap_or(0) as f64;
        let height = TOP + ROW * self.bars.len() as f64 + BOTTOM;
        let longest = self.bars.iter().map(|bar| bar.value).chain(self.aim).fold(f64::MIN_POSITIVE, f64::max);
        // One run that was disturbed shall not make all the bars short: its line goes to the edge.
        let edge = self.bars.iter().map(|bar| bar.range.1).fold(longest, f64::max).min(longest * 1.5);
        let scale = (WIDTH - left - TEXT) / edge;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" font-family=\"DejaVu Sans, Verdana, sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"16\" y=\"26\" font-size=\"15\" font-weight=\"bold\" fill=\"#1b1f24\">{}</text>\n\
             <text x=\"16\" y=\"46\" fill=\"#57606a\">{}</text>\n",
            escaped(&self.title),
            escaped(&self.subtitle)
        );
        let floor = TOP + ROW * self.bars.len() as f64;
        if let Some(aim) = self.aim {
            let x = left + aim * scale;
            line(&mut svg, (x, TOP - 4.0), (x, floor + 4.0), "stroke=\"#c2410c\" stroke-dasharray=\"4 3\"");
            put(
                &mut svg,
                (x, floor + 20.0),
                "text-anchor=\"middle\" fill=\"#c2410c\"",
                &format!("aim: {aim}"),
            );
        }
        for (row, bar) in self.bars.iter().enumerate() {
            bar.draw(&mut svg, (left, TOP + ROW * row as f64), scale, edge);
        }
        line(&mut svg, (left, TOP - 4.0), (left, floor), "stroke=\"#57606a\"");
        svg + "</svg>\n"
    }
}

impl Bar {
    fn draw(&self, svg: &mut String, (left, top): (f64, f64), scale: f64, edge: f64) {
        let (middle, baseline) = (top + ROW / 2.0, top + ROW / 2.0 + 4.0);
        let end = left + self.value.max(0.0) * scale;
        let (low, high) =
            (left + self.range.0.max(0.0) * scale, left + self.range.1.clamp(0.0, edge) * scale);
        let color = if self.peer { PEER } else { OURS };
        put(svg, (left - 8.0, baseline), "text-anchor=\"end\" fill=\"#1b1f24\"", &self.label);
        let (y, width) = (middle - BAR / 2.0, end - left);
        writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{color}\"/>"
        )
        .expect("a string has room");
        line(svg, (low, middle), (high, middle), "stroke=\"#1b1f24\"");
        put(svg, (end.max(high) + 8.0, baseline), "fill=\"#1b1f24\"", &self.text);
    }
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), style: &str) {
    writeln!(svg, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>")
        .expect("a string has room");
}

fn put(svg: &mut String, (x, y): (f64, f64), style: &str, text: &str) {
    // White around the letters, where they cross a line.
    let halo = "paint-order=\"stroke\" stroke=\"#ffffff\" stroke-width=\"3\"";
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {halo} {style}>{}</text>", escaped(text))
        .expect("a string has room");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_and_the_aim_are_drawn_inside() {
        let bar = |label: &str, value| Bar {
            label: label.into(),
            value,
            range: (value * 0.9, value * 11.0),
            text: format!("{value} <ns>"),
            peer: false,
        };
        let chart = Chart {
            title: "A & B".into(),
            subtitle: "ns".into(),
            bars: vec![bar("short", 10.0), bar("a longer one", 100.0)],
            aim: Some(67.0),
        };
        let svg = chart.svg();
        assert!(svg.contains("A &amp; B") && svg.contains("10 &lt;ns&gt;") && svg.contains("aim: 67"));
        assert_eq!(svg.matches("<rect").count(), 3);
        for attribute in ["x1=\"", "x2=\"", " x=\""] {
            for at in svg.split(attribute).skip(1) {
                let x: f64 = at.split('"').next().unwrap().parse().unwrap();
                assert!((0.0..WIDTH).contains(&x), "{attribute}{x}");
            }
        }
    }
}
