use super::*;

#[test]
fn a_password_shows_itself_to_nobody() {
    let password = Password::new("secret").expect("a password");
    assert!(!format!("{password:?}").contains("secret"));
    assert_eq!(Password::new(""), None);
    assert_eq!(Password::new(&"x".repeat(81)), None);
}

/// RFC 5082, section 3: from a direct neighbour only what has the most.
#[test]
fn gtsm_counts_hops() {
    assert_eq!(Options::gtsm(1), (Some(255), Some(255)));
    assert_eq!(Options::gtsm(2), (Some(255), Some(254)));
    assert_eq!(Options::gtsm(255), (Some(255), Some(1)));
}

fn plain() -> Options {
    Options { source: None, password: None, ttl: None, least_ttl: None }
}

/// A thousand connections of who is no neighbour: each is closed, and the neighbour gets through.
#[tokio::test]
async fn strangers_are_closed_and_harm_nobody() {
    let options = plain();
    let neighbor: IpAddr = "127.0.0.2".parse().expect("an address");
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let address = SocketAddr::new([127, 0, 0, 1].into(), port);
    let listener = Listener::bind(&[address], [(neighbor, &options)].into_iter()).expect("it listens");
    let (door, mut visitors) = mpsc::channel(1);
    let serving = listener.serve(HashMap::from([(neighbor, door)]));
    for _ in 0..1000 {
        let stream = TcpStream::connect(address).await.expect("the kernel accepts");
        stream.readable().await.expect("it is closed");
        let end = stream.try_read(&mut [0]);
        assert!(matches!(&end, Ok(0)) || end.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
    }
    assert_eq!(serving.strangers(), 1000);
    let ours = Options { source: Some(neighbor), ..plain() };
    let (_stream, local) = ours.connect(address).await.expect("a connection");
    let visitor = visitors.recv().await.expect("the neighbour's connection");
    assert_eq!(visitor.peer_addr().expect("an address"), local);
}

#[tokio::test]
async fn what_cannot_be_listened_on_says_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let error = Listener::bind(&[address], std::iter::empty()).expect_err("it is taken").to_string();
    assert!(
        error.starts_with(&format!("cannot listen for BGP on {address}: ")) && error.contains("bgp.listen"),
        "{error}"
    );
}
