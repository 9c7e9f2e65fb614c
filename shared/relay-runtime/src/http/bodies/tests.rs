use super::*;
use axum::Router;
use axum::body::to_bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::post;
use futures_util::stream;
use tokio::sync::{mpsc, oneshot};
use tower::ServiceExt;

use crate::extract::JsonBody;

fn caller(tenant: &str) -> Caller {
    let scopes = relay_core::keys::Scopes::of([relay_core::keys::Scope::Admin]);
    Caller { tenant: TenantId::trusted(tenant), operator: false, scopes, key: None }
}

/// A body whose pieces are sent one by one, and end with the sender.
fn fed() -> (mpsc::UnboundedSender<&'static [u8]>, Body) {
    let (pieces, receiver) = mpsc::unbounded_channel();
    let pieces_of = stream::unfold(receiver, |mut receiver| async move {
        let piece: &'static [u8] = receiver.recv().await?;
        Some((Ok::<_, axum::Error>(Bytes::from_static(piece)), receiver))
    });
    (pieces, Body::from_stream(pieces_of))
}

fn request(tenant: &str, body: Body) -> Request {
    let mut request = Request::post("/").header("content-type", "application/json").body(body).unwrap();
    request.extensions_mut().insert(caller(tenant));
    request
}

fn around(bodies: &Bodies, routes: Router) -> Router {
    routes.layer(middleware::from_fn_with_state(bodies.clone(), hold_room))
}

/// A route that answers the length of a body of up to a megabyte.
fn lengths(bodies: &Bodies) -> Router {
    let read = async |body: Bytes| body.len().to_string();
    around(bodies, Router::new().route("/", post(read)).layer(DefaultBodyLimit::max(1_000_000)))
}

fn used(bodies: &Bodies) -> usize {
    bodies.with(|room| room.used())
}

async fn answer(response: Response) -> (StatusCode, String) {
    let status = response.status();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// Waits until so much of the room is used. Ends, as the tasks around it have all they need.
async fn until_used(bodies: &Bodies, bytes: usize) {
    while used(bodies) != bytes {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn bytes_are_counted_as_they_come_and_free_at_the_end() {
    let bodies = Bodies::new(1000);
    let router = lengths(&bodies);
    let (pieces, body) = fed();
    let slow = tokio::spawn(router.clone().oneshot(request("a", body)));
    pieces.send(&[b'x'; 600]).unwrap();
    until_used(&bodies, 600).await;
    assert_eq!(answer(router.clone().oneshot(request("b", Body::from("y"))).await.unwrap()).await.1, "1");
    assert_eq!(used(&bodies), 600, "the other one is answered");
    pieces.send(&[b'x'; 100]).unwrap();
    drop(pieces);
    assert_eq!(answer(slow.await.unwrap().unwrap()).await.1, "700");
    assert_eq!(used(&bodies), 0);
}

#[tokio::test]
async fn a_client_that_goes_away_holds_nothing() {
    let bodies = Bodies::new(1000);
    let (pieces, body) = fed();
    let gone = tokio::spawn(lengths(&bodies).oneshot(request("a", body)));
    pieces.send(&[b'x'; 600]).unwrap();
    until_used(&bodies, 600).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    assert_eq!(used(&bodies), 0);
}

#[tokio::test]
async fn what_is_kept_of_a_body_holds_its_room() {
    let bodies = Bodies::new(1000);
    let (kept, keeping) = oneshot::channel();
    let kept = Arc::new(Mutex::new(Some(kept)));
    let keep = async move |held: axum::Extension<Held>, body: Bytes| {
        let kept = kept.lock().unwrap().take().unwrap();
        kept.send(held.0.keep(body).slice(10..20)).unwrap();
    };
    let router = around(&bodies, Router::new().route("/", post(keep)));
    let (status, _) = answer(router.oneshot(request("a", Body::from("x".repeat(500)))).await.unwrap()).await;
    assert_eq!((status, used(&bodies)), (StatusCode::OK, 500), "all of it, as the slice keeps all of it");
    let slice = keeping.await.unwrap();
    assert_eq!(slice, "x".repeat(10));
    drop(slice);
    assert_eq!(used(&bodies), 0);
}

#[tokio::test]
async fn without_room_the_answer_says_whose_doing_it_is() {
    let bodies = Bodies::new(1000);
    let read = async |JsonBody(_): JsonBody<serde_json::Value>| {};
    let router = around(&bodies, Router::new().route("/", post(read)));
    let (pieces, body) = fed();
    let slow = tokio::spawn(router.clone().oneshot(request("a", body)));
    pieces.send(&[b'x'; 700]).unwrap();
    until_used(&bodies, 700).await;
    let large = || Body::from(format!("{{\"a\":\"{}\"}}", "x".repeat(300)));
    for (tenant, status, slug) in [("a", 429, "too-many-requests"), ("b", 503, "overloaded")] {
        let response = router.clone().oneshot(request(tenant, large())).await.unwrap();
        assert_eq!(response.headers()["retry-after"], "1");
        let (got, text) = answer(response).await;
        assert_eq!(got, status, "{text}");
        assert!(text.contains(&format!("urn:webhook-relay:problem:{slug}\"")), "{text}");
        assert_eq!(used(&bodies), 700, "what came of it is free again");
    }
    assert_eq!(router.clone().oneshot(request("b", Body::from("{}"))).await.unwrap().status(), 200, "others go on");
    slow.abort();
    assert!(slow.await.is_err());
    for tenant in ["a", "b"] {
        assert_eq!(router.clone().oneshot(request(tenant, large())).await.unwrap().status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn slow_bodies_are_cut_while_room_is_short_only() {
    let bodies = Bodies::new(1000);
    let router = lengths(&bodies);
    let begin = |bytes: &'static [u8]| {
        let (pieces, body) = fed();
        pieces.send(bytes).unwrap();
        let router = router.clone();
        let answered = tokio::spawn(async move {
            let response = router.oneshot(request("a", body)).await.unwrap();
            response.status()
        });
        (pieces, answered)
    };
    let (lone, answered) = begin(&[b'x'; 400]);
    tokio::time::sleep(HURRY * 3).await;
    assert_eq!(used(&bodies), 400, "there is room enough");
    let (second, other) = begin(&[b'x'; 200]);
    // The text is the extractor's here; ours make a problem of it.
    assert_eq!(answered.await.unwrap(), 400, "the one that is looked at first");
    assert!(lone.is_closed());
    tokio::time::sleep(HURRY * 3).await;
    assert_eq!(used(&bodies), 200, "then there is room enough again");
    drop(second);
    assert_eq!(other.await.unwrap(), 200);
    assert_eq!(used(&bodies), 0);
}

#[tokio::test]
async fn small_pieces_are_gathered() {
    let bodies = Bodies::new(1_000_000);
    let sizes = async |body: Body| {
        let mut body = body;
        let mut sizes = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            sizes.push(frame.unwrap().into_data().unwrap().len());
        }
        axum::Json(sizes).into_response()
    };
    let router = around(&bodies, Router::new().route("/", post(sizes)));
    let pieces: Vec<_> = (0..40_000).map(|_| Ok::<_, axum::Error>(Bytes::from_static(b"x"))).collect();
    let response = router.clone().oneshot(request("a", Body::from_stream(stream::iter(pieces)))).await.unwrap();
    assert_eq!(answer(response).await.1, format!("[{PIECE_BYTES},{PIECE_BYTES},{}]", 40_000 - 2 * PIECE_BYTES));
    let whole = router.oneshot(request("a", Body::from("x".repeat(100_000)))).await.unwrap();
    assert_eq!(answer(whole).await.1, "[100000]");
}
