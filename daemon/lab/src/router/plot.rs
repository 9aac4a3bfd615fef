//! Two charts as SVG: how often answers do that were given a probability, and what is gained by sending a share up.

use std::fmt::Write as _;

/// Length of an axis, in pixels.
const AXIS: f64 = 400.0;
/// Room beside and below an axis.
const MARGIN: f64 = 60.0;
const COLORS: [&str; 8] = [
    "#1b6ca8", "#c2410c", "#3f7d20", "#7b3fa0", "#a8861b", "#0f766e", "#b0306a", "#555555",
];

/// A line of a chart, from points between 0 and 1.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// Whether the points themselves are drawn.
    pub(super) marked: bool,
}

/// A chart with the diagonal that its lines are compared to.
pub(super) fn chart(title: &str, across: &str, up: &str, diagonal: &str, lines: &[Line]) -> String {
    let side = AXIS + 2.0 * MARGIN;
    let height = side + 18.0 * (lines.len() + 1) as f64;
    let x = |value: f64| MARGIN + AXIS * value.clamp(0.0, 1.0);
    let y = |value: f64| MARGIN + AXIS * (1.0 - value.clamp(0.0, 1.0));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{side}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"30\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    for tick in 0..=5 {
        let value = f64::from(tick) / 5.0;
        let _ = writeln!(
            svg,
            "<path d=\"M{0:.1} {1:.1}V{2:.1}M{3:.1} {4:.1}H{5:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{0:.1}\" y=\"{6:.1}\" text-anchor=\"middle\">{value}</text>\
             <text x=\"{7:.1}\" y=\"{8:.1}\" text-anchor=\"end\">{value}</text>",
            x(value),
            y(0.0),
            y(1.0),
            x(0.0),
            y(value),
            x(1.0),
            y(0.0) + 16.0,
            x(0.0) - 6.0,
            y(value) + 4.0,
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        x(0.5),
        y(0.0) + 38.0,
        escaped(across),
        y(0.5),
        escaped(up)
    );
    let straight = Line {
        name: diagonal.to_owned(),
        points: vec![(0.0, 0.0), (1.0, 1.0)],
        marked: false,
    };
    let all = lines
        .iter()
        .zip(COLORS.iter().cycle())
        .map(|(line, color)| (line, *color, ""));
    let all = std::iter::once((&straight, "#888888", " stroke-dasharray=\"4 4\"")).chain(all);
    for (index, (line, color, dashes)) in all.enumerate() {
        let mut path = String::new();
        for (at, (across, up)) in line.points.iter().enumerate() {
            let _ = write!(
                path,
                "{}{:.1} {:.1}",
                if at == 0 { 'M' } else { 'L' },
                x(*across),
                y(*up)
            );
            if line.marked {
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{color}\"/>",
                    x(*across),
                    y(*up)
                );
            }
        }
        let below = side + 18.0 * index as f64;
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"{dashes}/>\
             <path d=\"M{MARGIN} {below:.1}h24\" stroke=\"{color}\" stroke-width=\"1.5\"{dashes}/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            MARGIN + 32.0,
            below + 4.0,
            escaped(&line.name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_where_they_belong() {
        let line = Line {
            name: "a<b & c".to_owned(),
            points: vec![(0.0, 0.0), (0.5, 0.75), (1.0, 2.0)],
            marked: true,
        };
        let svg = chart("t", "x", "y", "same", &[line]);
        assert!(svg.contains("M60.0 460.0L260.0 160.0L460.0 60.0"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("a&lt;b &amp; c") && svg.ends_with("</svg>\n"));
    }
}
