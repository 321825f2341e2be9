//! The picture of the months: what each way of switching leaves of them, and how long the gaps are that this system makes.

use super::{Outcome, What};
use crate::report::svg::Svg;

const STYLE: &str = include_str!("../../report/style.css");

const WIDTH: f64 = 980.0;
/// Room for the rows' names.
const LEFT: f64 = 300.0;
/// Room for the rows' figures.
const RIGHT: f64 = 170.0;
const ROW: f64 = 24.0;
const TOP: f64 = 96.0;
const HISTOGRAM: f64 = 130.0;
/// The axis of seconds, in powers of ten: from a packet or two to more than a link of 99.9 % is dead.
const DECADES: std::ops::RangeInclusive<i32> = -2..=4;

/// Where so many seconds stand on the logarithmic axis.
fn place(seconds: f64) -> f64 {
    let (first, last) = (f64::from(*DECADES.start()), f64::from(*DECADES.end()));
    let at = seconds.max(f64::MIN_POSITIVE).log10().clamp(first, last);
    LEFT + (at - first) / (last - first) * (WIDTH - LEFT - RIGHT)
}

/// Draws it.
pub(super) fn svg(outcome: &Outcome) -> String {
    let mut svg = Svg::default();
    let rows = outcome.rows.len() as f64 * ROW;
    let height = TOP + rows + 90.0 + HISTOGRAM + 50.0;
    svg.rect("paper", (0.0, 0.0), (WIDTH, height), "");
    svg.text("title", (20.0, 34.0), "What two links of 99.9 % leave of a month");
    let of = format!(
        "{} simulated months, RTT {} ms, {} packets a second each way around each outage",
        outcome.months.len(),
        outcome.rtt_ms,
        outcome.rate
    );
    svg.text("sub", (20.0, 54.0), &of);
    svg.text("tick", (LEFT, TOP - 22.0), "seconds without traffic in a month");
    for decade in DECADES {
        let (x, seconds) = (place(10f64.powi(decade)), 10f64.powi(decade));
        svg.line("grid", (x, TOP - 4.0), (x, TOP + rows));
        svg.text("tick mid", (x, TOP - 8.0), &seconds.to_string());
    }
    svg.text("tick end", (WIDTH - 20.0, TOP - 8.0), "seconds, nines");
    for (at, row) in outcome.rows.iter().enumerate() {
        let y = TOP + at as f64 * ROW;
        let class = if row.name.starts_with("this system") { "up" } else { "absent" };
        svg.text("end", (LEFT - 10.0, y + 16.0), &row.name);
        svg.rect(class, (LEFT, y + 4.0), (place(row.seconds) - LEFT, ROW - 8.0), "");
        let nines = row.nines.map_or("all".into(), |nines| format!("{nines:.1}"));
        svg.text("figure", (WIDTH - 64.0, y + 16.0), &format!("{:.2}", row.seconds));
        svg.text("end", (WIDTH - 20.0, y + 16.0), &nines);
    }
    histogram(&mut svg, outcome, TOP + rows + 90.0);
    svg.finish((WIDTH, height), STYLE)
}

/// Failovers by the length of their gap, a column each millisecond.
fn histogram(svg: &mut Svg, outcome: &Outcome, top: f64) {
    let gaps: Vec<f64> = (outcome.months.iter().flat_map(|month| &month.added))
        .filter(|added| added.what == What::Failover)
        .map(|added| added.gap_ms)
        .collect();
    let bar = (outcome.rtt_ms + 30) as f64;
    let most = gaps.iter().copied().fold(bar, f64::max).ceil() + 5.0;
    let mut columns = vec![0u32; most as usize + 1];
    for gap in &gaps {
        columns[*gap as usize] += 1;
    }
    let highest = columns.iter().copied().max().unwrap_or_default().max(1);
    let (left, width) = (64.0, WIDTH - 84.0);
    let x = |gap: f64| left + gap / most * width;
    svg.text("head", (20.0, top - 34.0), &format!("The gaps of {} failovers", gaps.len()));
    svg.text("sub", (20.0, top - 16.0), "longest time without a packet, the worse of both directions; milliseconds");
    svg.rect("panel", (left, top), (width, HISTOGRAM), "");
    for (gap, count) in columns.iter().enumerate().filter(|(_, count)| **count > 0) {
        let height = f64::from(*count) / f64::from(highest) * (HISTOGRAM - 8.0);
        let tip = format!("{gap} to {} ms: {count}", gap + 1);
        let size = ((width / most - 0.5).max(0.5), height);
        svg.rect("up", (x(gap as f64), top + HISTOGRAM - height), size, &tip);
    }
    let step = [5.0, 10.0, 20.0, 50.0, 100.0].into_iter().find(|step| most / step <= 20.0).unwrap_or(500.0);
    for tick in (0..).map(|tick| f64::from(tick) * step).take_while(|tick| *tick <= most) {
        svg.text("tick mid", (x(tick), top + HISTOGRAM + 16.0), &tick.to_string());
    }
    svg.text("tick end", (left - 6.0, top + 14.0), &highest.to_string());
    svg.line("event", (x(bar), top), (x(bar), top + HISTOGRAM));
    svg.text("tick end", (x(bar) - 5.0, top + 14.0), "the bar: RTT + 30 ms");
}
