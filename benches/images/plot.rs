//! The plot: a pair of bars for each row, as long as the logarithm of the figure (SVG 1.1).

use crate::Row;

const CONTAINER: &str = "#3d7ab8";
const MACHINE: &str = "#c4622d";
const LEFT: f64 = 330.0;
const WIDTH: f64 = 470.0;
const BAR: f64 = 13.0;

/// Draws all rows.
pub fn draw(rows: &[Row]) -> String {
    let (mut body, mut y) = (String::new(), 50.0);
    let text = |x: f64, y: f64, anchor: &str, text: &str| {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n")
    };
    // The longest bar of each unit is as wide as the plot; the shortest has a thousandth of its figure.
    let longest = |unit: &str| {
        let all = rows
            .iter()
            .filter(|row| row.unit == unit)
            .flat_map(|row| row.container.iter().chain(&row.machine));
        all.map(|(_, figure)| figure.p50).fold(f64::MIN_POSITIVE, f64::max)
    };
    for row in rows {
        let most = longest(row.unit);
        let count = row.container.len() + row.machine.len();
        body += &text(
            LEFT - 8.0,
            y + BAR * count as f64 / 2.0 + 4.0,
            "end",
            &format!("{} [{}]", row.what, row.unit),
        );
        let sides = [(&row.container, CONTAINER), (&row.machine, MACHINE)];
        for (name, figure, colour) in sides
            .into_iter()
            .flat_map(|(side, colour)| side.iter().map(move |(name, figure)| (name, figure, colour)))
        {
            let part = 1.0 + (figure.p50.max(most / 1e5) / most).log10() / 5.0;
            let width = (part * WIDTH).max(1.0);
            body += &format!(
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\n",
                BAR - 2.0
            );
            body += &text(LEFT + width + 5.0, y + BAR - 4.0, "start", &format!("{:.2}  {name}", figure.p50));
            y += BAR;
        }
        y += 10.0;
    }
    let head = text(
        LEFT,
        20.0,
        "start",
        "Containers (blue) and machines of rvmm (orange): p50, logarithmic, shorter is better",
    );
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1040\" height=\"{:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{head}{body}</svg>\n",
        y + 20.0
    )
}
