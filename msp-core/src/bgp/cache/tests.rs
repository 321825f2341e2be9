use super::*;
use crate::bgp::origin::Vrp;
use tokio::net::TcpListener;

fn at(seconds: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(seconds)
}

fn config(name: &str) -> Config {
    Config { name: name.into(), address: "192.0.2.1:323".parse().expect("an address") }
}

fn set(asn: u32) -> Arc<Origins> {
    let vrp = Vrp { prefix: "10.0.0.0/8".parse().expect("a prefix"), max_length: 8, asn };
    Arc::new(Origins::new(vec![vrp]))
}

const SERIAL: Serial = Serial { session: 1, serial: 1 };

#[test]
fn the_first_that_is_there_counts_then_the_first_that_has_not_expired() {
    let mut caches = Caches::new(at(0), vec![config("a"), config("b")]);
    let timing = Timing::default();
    assert_eq!(caches.poll_timeout(), Some(at(10)));
    assert!(!caches.settled());
    caches.answered(at(1), 1, set(2), SERIAL, timing);
    assert_eq!(caches.origins(), Some(&set(2)));
    assert!(!caches.settled(), "the preferred one may answer yet");
    caches.answered(at(2), 0, set(1), SERIAL, timing);
    assert_eq!(caches.origins(), Some(&set(1)));
    assert!(caches.settled());
    caches.failed(0, "closed".into());
    assert_eq!(caches.origins(), Some(&set(2)), "b is there");
    caches.failed(1, "closed".into());
    assert_eq!(caches.origins(), Some(&set(1)), "neither is, and both are believed for their time");
    assert_eq!(caches.poll_timeout(), Some(at(7201)));
    caches.handle_timeout(at(7201));
    caches.handle_timeout(at(7202));
    assert_eq!(caches.origins(), None);
    assert!(caches.settled());
    caches.answered(at(7203), 1, set(2), SERIAL, timing);
    assert_eq!(caches.origins(), Some(&set(2)));
}

#[test]
fn the_start_waits_for_no_cache_longer_than_ten_seconds() {
    let mut caches = Caches::new(at(0), vec![config("a"), config("b")]);
    caches.failed(0, "refused".into());
    assert!(!caches.settled());
    caches.handle_timeout(at(10));
    assert!(caches.settled());
    assert_eq!(caches.poll_timeout(), None);
    assert!(Caches::new(at(0), Vec::new()).settled(), "there is none to wait for");
}

/// Waits until the caches are as they should be.
async fn until(known: &mut watch::Receiver<Caches>, good: impl FnMut(&Caches) -> bool) -> Vec<CacheStatus> {
    known.wait_for(good).await.expect("the tasks run").status(clock::now())
}

/// A cache of raw octets: one answer, then garbage; it comes back, and has gone on.
#[tokio::test]
async fn a_connection_that_breaks_is_made_again_and_what_is_known_goes_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut known = start(vec![Config { name: "a".into(), address }]);
    let response = [1, 3, 0, 7, 0, 0, 0, 8];
    let prefix = |announce, asn| [1, 4, 0, 0, 0, 0, 0, 20, announce, 8, 8, 0, 10, 0, 0, 0, 0, 0, 0, asn];
    // Refresh after 3,600 s, retry after 1 s, expire after 7,200 s.
    let end = |serial| [1, 7, 0, 7, 0, 0, 0, 24, 0, 0, 0, serial, 0, 0, 14, 16, 0, 0, 0, 1, 0, 0, 28, 32];

    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut query = [0; 8];
    stream.read_exact(&mut query).await.expect("a reset query");
    assert_eq!(query, [1, 2, 0, 0, 0, 0, 0, 8]);
    stream.write_all(&[&response[..], &prefix(1, 1), &end(1)].concat()).await.expect("it is read");
    until(&mut known, |caches| caches.origins() == Some(&set(1))).await;
    drop(stream);
    let status = until(&mut known, |caches| caches.list[0].failures == 1).await;
    assert_eq!(status[0].last_error.as_deref(), Some("closed by the cache"));
    assert!(status[0].counts && !status[0].connected);

    // It is asked for what is new, and tells of what was never there: what it says next is asked for from the beginning.
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut query = [0; 12];
    stream.read_exact(&mut query).await.expect("a serial query");
    assert_eq!(query, [1, 1, 0, 7, 0, 0, 0, 12, 0, 0, 0, 1]);
    stream.write_all(&[&response[..], &prefix(0, 2), &end(2)].concat()).await.expect("it is read");
    let mut report = Vec::new();
    stream.read_to_end(&mut report).await.expect("an error report");
    assert_eq!(report[..4], [1, 10, 0, 6]);
    let status = until(&mut known, |caches| caches.list[0].failures == 2).await;
    let why = "the cache withdrew 10.0.0.0/8-8 AS 2, which was not there";
    assert_eq!(status[0].last_error.as_deref(), Some(why));
    assert_eq!(known.borrow().origins(), Some(&set(1)));

    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut query = [0; 8];
    stream.read_exact(&mut query).await.expect("a reset query");
    stream.write_all(&[&response[..], &prefix(1, 3), &end(3)].concat()).await.expect("it is read");
    until(&mut known, |caches| caches.origins() == Some(&set(3))).await;

    // It is another one that does not know what it is asked about, and closes: it is asked for everything.
    drop(stream);
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut query = [0; 12];
    stream.read_exact(&mut query).await.expect("a serial query");
    drop(stream);
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut query = [0; 8];
    stream.read_exact(&mut query).await.expect("a reset query");
    assert_eq!(query, [1, 2, 0, 0, 0, 0, 0, 8]);
}

#[tokio::test]
async fn a_cache_that_never_stops_talking_is_asked_all_the_same() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let _known = start(vec![Config { name: "a".into(), address }]);
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut query = [0; 8];
    stream.read_exact(&mut query).await.expect("a reset query");
    let response = [1, 3, 0, 7, 0, 0, 0, 8];
    // Refresh after 1 s.
    let end = [1, 7, 0, 7, 0, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 28, 32];
    stream.write_all(&[&response[..], &end].concat()).await.expect("it is read");
    let (mut questions, mut words) = stream.into_split();
    let nothing_new = [1, 0, 0, 7, 0, 0, 0, 12, 0, 0, 0, 1].repeat(5000);
    let talk = tokio::spawn(async move { while words.write_all(&nothing_new).await.is_ok() {} });
    let mut query = [0; 12];
    let asked = tokio::time::timeout(Duration::from_secs(20), questions.read_exact(&mut query)).await;
    asked.expect("in time").expect("a serial query");
    assert_eq!(query, [1, 1, 0, 7, 0, 0, 0, 12, 0, 0, 0, 1]);
    talk.abort();
}

#[tokio::test]
async fn caches_whose_tasks_have_died_are_no_news() {
    let (known, mut receiver) = watch::channel(Caches::new(clock::now(), vec![config("a")]));
    let (_, heard) = mpsc::channel(1);
    let keeping = tokio::spawn(keep(known, heard, JoinSet::new()));
    assert!(tokio::time::timeout(Duration::from_millis(50), receiver.changed()).await.is_err(), "nothing has changed");
    keeping.abort();
}
