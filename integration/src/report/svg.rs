//! A small writer of SVG: shapes with a class each, so that the style sheet alone decides about colours.

use std::fmt::{Display, Write};

/// A picture being drawn.
#[derive(Debug, Default)]
pub(crate) struct Svg {
    out: String,
}

/// Text as XML has it.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML 1.0 has hardly any control characters, not even escaped.
            '\n' => out.push('\n'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A tenth of a pixel is finer than any screen shows.
fn short(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

impl Svg {
    fn push(&mut self, element: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "{element}");
    }

    /// A rectangle; `tip` is shown by a browser when the pointer rests on it.
    pub(crate) fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64), tip: &str) {
        let (x, y, width, height) = (short(x), short(y), short(width.max(0.0)), short(height.max(0.0)));
        let title = if tip.is_empty() { String::new() } else { format!("<title>{}</title>", escape(tip)) };
        self.push(format_args!(
            r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}">{title}</rect>"#
        ));
    }

    /// A straight line.
    pub(crate) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let (x1, y1, x2, y2) = (short(x1), short(y1), short(x2), short(y2));
        self.push(format_args!(r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#));
    }

    /// Text; the class may also say how it is anchored.
    pub(crate) fn text(&mut self, class: &str, (x, y): (f64, f64), text: &str) {
        let (x, y) = (short(x), short(y));
        self.push(format_args!(r#"<text class="{class}" x="{x}" y="{y}">{}</text>"#, escape(text)));
    }

    /// A line through points, or with `base` an area between them and that height. Nothing of fewer than two.
    pub(crate) fn curve(&mut self, class: &str, points: &[(f64, f64)], base: Option<f64>) {
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        if points.len() < 2 {
            return;
        }
        let mut d = String::new();
        for (i, (x, y)) in points.iter().enumerate() {
            let _ = write!(d, "{}{} {}", if i == 0 { "M" } else { "L" }, short(*x), short(*y));
        }
        if let Some(base) = base {
            let _ = write!(d, "L{} {}L{} {}Z", short(last.0), short(base), short(first.0), short(base));
        }
        self.push(format_args!(r#"<path class="{class}" d="{d}"/>"#));
    }

    /// The whole picture.
    pub(crate) fn finish(self, (width, height): (f64, f64), style: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\">\n<style>{style}</style>\n{}</svg>\n",
            self.out
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_script_the_picture() {
        let mut svg = Svg::default();
        svg.text("label", (0.0, 0.0), "<script>\"&\u{1b}[31m");
        svg.rect("up", (0.0, 0.0), (1.0, -1.0), "</title><script>");
        let out = svg.finish((10.0, 10.0), "");
        assert!(!out.contains("<script>") && !out.contains('\u{1b}'));
        assert!(out.contains("&lt;script&gt;&quot;&amp;") && out.contains("height=\"0\""));
    }
}
