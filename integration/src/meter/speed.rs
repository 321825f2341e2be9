//! Speed by iperf3, where it is asked for.

use super::clock::{Clock, Nanos};
use super::{EndResult, Iperf3, Span, SpeedResult};
use std::io;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

/// A running iperf3 server.
pub(crate) struct SpeedServer(Child);

/// Starts a server at `local`.
pub(crate) fn serve(local: SocketAddr) -> io::Result<SpeedServer> {
    let mut command = Command::new("iperf3");
    command.args(["--server", "--bind", &local.ip().to_string(), "--port", &local.port().to_string()]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    child.map(SpeedServer).map_err(missing)
}

impl SpeedServer {
    /// Lets it serve until `end`.
    pub(crate) fn run(mut self, clock: Clock, end: Nanos) -> io::Result<EndResult> {
        clock.sleep_until(end);
        self.0.kill()?;
        self.0.wait()?;
        Ok(EndResult::Nothing)
    }
}

/// Sends to the server at `remote`.
pub(crate) fn speed(clock: Clock, remote: SocketAddr, iperf3: &Iperf3, length: Span) -> SpeedResult {
    let stop = iperf3.stop.unwrap_or(length);
    let seconds = stop.0.saturating_sub(iperf3.start.0).as_secs().max(1);
    clock.sleep_until(i64::try_from(iperf3.start.nanos()).unwrap_or(i64::MAX));
    let mut command = Command::new("iperf3");
    command.args(["--client", &remote.ip().to_string(), "--port", &remote.port().to_string(), "--json"]);
    command.args(["--time", &seconds.to_string(), "--parallel", &iperf3.connections.to_string()]);
    if let Some(rate) = iperf3.udp_rate {
        command.args(["--udp", "--bitrate", &rate.to_string()]);
    }
    let measured = command.stdin(Stdio::null()).output().map_err(|e| missing(e).to_string());
    let measured = measured.and_then(|output| received(&output.stdout));
    let result = SpeedResult {
        name: iperf3.name.clone(),
        from: iperf3.from.clone(),
        to: iperf3.to.clone(),
        ..Default::default()
    };
    match measured {
        Ok(bps) => SpeedResult { bps, ..result },
        Err(error) => SpeedResult { error: Some(error), ..result },
    }
}

fn missing(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot start iperf3: {error}; `cargo lab setup` installs it"))
}

/// The receiver's speed in iperf3's document.
fn received(json: &[u8]) -> Result<f64, String> {
    let document: serde_json::Value =
        serde_json::from_slice(json).map_err(|error| format!("iperf3 wrote no document: {error}"))?;
    if let Some(error) = document["error"].as_str() {
        return Err(format!("iperf3: {error}"));
    }
    // UDP's document has one sum for both ends.
    let end = &document["end"];
    let sum = if end["sum_received"].is_object() { &end["sum_received"] } else { &end["sum"] };
    sum["bits_per_second"].as_f64().ok_or_else(|| "iperf3's document has no sum_received.bits_per_second".to_owned())
}
