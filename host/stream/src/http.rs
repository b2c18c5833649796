//! The one request of a connection: its token, its upgrade, its subprotocol.

use crate::server::Shared;
use crate::spdy;
use crate::spdy::remote_command::Version;
use crate::token::Call;
use crate::websocket::{self, Protocol};
use http::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

static PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
static ACCEPTED_VERSIONS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");

/// How a call is to be served, and what the client is told of it.
struct Plan {
    wire: Wire,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// What is spoken after the upgrade.
enum Wire {
    Spdy(Version),
    SpdyForward,
    Channels(Protocol),
    ChannelsForward(Protocol),
    Tunnel,
}

/// A request that is refused.
type Refusal = Box<Response<String>>;

/// Answers a request; after an upgrade the session is a task of its own.
pub(crate) fn answer(
    mut request: Request<Incoming>,
    shared: Arc<Shared>,
    place: Arc<OwnedSemaphorePermit>,
) -> Response<String> {
    let accepted = accept(&request, &shared);
    let (call, plan) = match accepted {
        Ok(accepted) => accepted,
        Err(refusal) => return *refusal,
    };
    let Ok(session) = Arc::clone(&shared.sessions).try_acquire_owned() else {
        let problem = "The node has too many streaming sessions; end some of them";
        return *refuse(StatusCode::SERVICE_UNAVAILABLE, problem);
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().extend(plan.headers);
    tokio::spawn(async move {
        // Freed when the session is over.
        let _places = (place, session);
        match upgrade.await {
            Ok(io) => serve(TokioIo::new(io), &shared, call, plan.wire).await,
            Err(error) => tracing::debug!(%error, "A streaming connection was not upgraded"),
        }
    });
    response
}

async fn serve<T>(io: T, shared: &Shared, call: Call, wire: Wire)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (backend, limits) = (&*shared.backend, &shared.limits);
    match (wire, &call) {
        (Wire::Spdy(version), _) => {
            spdy::remote_command::serve(io, (backend, limits), (&call, version)).await;
        }
        (Wire::Channels(protocol), _) => {
            websocket::remote_command::serve(io, (backend, limits), (&call, protocol)).await;
        }
        (Wire::SpdyForward, Call::Forward(request)) => {
            let backend = Arc::clone(&shared.backend);
            spdy::port_forward::serve(io, backend, limits, &request.pod).await;
        }
        (Wire::Tunnel, Call::Forward(request)) => {
            let backend = Arc::clone(&shared.backend);
            let tunnel = websocket::Tunnel::new(websocket::start(io).await);
            spdy::port_forward::serve(tunnel, backend, limits, &request.pod).await;
        }
        (Wire::ChannelsForward(protocol), Call::Forward(request)) => {
            let ports = (request.pod.as_str(), request.ports.as_slice());
            websocket::port_forward::serve(io, (backend, limits), ports, protocol).await;
        }
        // The plan is made from the call.
        _ => {}
    }
}

/// Checks the request and takes its token.
fn accept<B>(request: &Request<B>, shared: &Shared) -> Result<(Call, Plan), Refusal> {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        let problem = "Streaming URLs take GET and POST";
        return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, problem));
    }
    let mut parts = request.uri().path().split('/');
    let call = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(""), Some(path), Some(token), None) => shared.tokens.take(path, token),
        _ => None,
    };
    let call = call.ok_or_else(|| {
        let problem =
            "There is nothing here: a streaming URL can be used once and for a short time";
        refuse(StatusCode::NOT_FOUND, problem)
    })?;
    let headers = request.headers();
    let plan = if names(headers, &CONNECTION).any(|name| name.eq_ignore_ascii_case("upgrade")) {
        let mut upgrades = names(headers, &UPGRADE);
        match upgrades.find_map(kind) {
            Some(Kind::Spdy) => spdy_plan(headers, &call)?,
            Some(Kind::WebSocket) => websocket_plan(headers, &call)?,
            None => return Err(bad("The Upgrade header must name SPDY/3.1 or websocket")),
        }
    } else {
        return Err(bad(
            "A streaming URL wants an upgrade to SPDY/3.1 or websocket",
        ));
    };
    Ok((call, plan))
}

enum Kind {
    Spdy,
    WebSocket,
}

fn kind(name: &str) -> Option<Kind> {
    if name.eq_ignore_ascii_case(spdy::UPGRADE) {
        return Some(Kind::Spdy);
    }
    name.eq_ignore_ascii_case("websocket")
        .then_some(Kind::WebSocket)
}

fn spdy_plan(headers: &HeaderMap, call: &Call) -> Result<Plan, Refusal> {
    let upgrade = (UPGRADE, HeaderValue::from_static(spdy::UPGRADE));
    let offered: Vec<&str> = names(headers, &PROTOCOL_VERSION).collect();
    let (wire, name) = match call {
        Call::Forward(_) => {
            let known = [(spdy::port_forward::PROTOCOL, ())];
            let name = choose(&offered, &known).map(|(name, ())| name);
            (
                name.map(|name| (Wire::SpdyForward, name)),
                spdy::port_forward::PROTOCOL,
            )
        }
        _ => {
            let chosen = choose(&offered, &Version::NAMES);
            (
                chosen.map(|(name, version)| (Wire::Spdy(version), name)),
                "channel.k8s.io",
            )
        }
    };
    match (wire, offered.is_empty()) {
        (Some((wire, name)), _) => {
            let version = (PROTOCOL_VERSION.clone(), HeaderValue::from_static(name));
            Ok(Plan {
                wire,
                headers: vec![upgrade, version],
            })
        }
        // The clients of Kubernetes 1.0 name no version and expect none.
        (None, true) => {
            let wire = match call {
                Call::Forward(_) => Wire::SpdyForward,
                _ => Wire::Spdy(Version::V1),
            };
            Ok(Plan {
                wire,
                headers: vec![upgrade],
            })
        }
        (None, false) => {
            let mut refusal = refuse(
                StatusCode::FORBIDDEN,
                "None of the versions in X-Stream-Protocol-Version is known here",
            );
            let known: Vec<&'static str> = match call {
                Call::Forward(_) => vec![name],
                _ => Version::NAMES.iter().map(|(name, _)| *name).collect(),
            };
            for name in known {
                let name = HeaderValue::from_static(name);
                refusal.headers_mut().append(&ACCEPTED_VERSIONS, name);
            }
            Err(refusal)
        }
    }
}

fn websocket_plan(headers: &HeaderMap, call: &Call) -> Result<Plan, Refusal> {
    let key = headers.get(SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| bad("A WebSocket upgrade wants Sec-WebSocket-Key"))?;
    if headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Err(bad("Only version 13 of WebSocket is known here"));
    }
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    let accept = accept.map_err(|_| bad("Sec-WebSocket-Key is wrong"))?;
    let mut told = vec![
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accept),
    ];
    let offered: Vec<&str> = names(headers, &SEC_WEBSOCKET_PROTOCOL).collect();
    let chosen = match call {
        Call::Forward(request) => {
            let tunnel = choose(&offered, &[(websocket::TUNNEL, ())]);
            let tunnel = tunnel.map(|(name, ())| (name, Wire::Tunnel));
            match tunnel {
                Some(tunnel) => Some(tunnel),
                None => choose(&offered, &Protocol::FORWARD)
                    .map(|(name, protocol)| {
                        let most = websocket::port_forward::max_ports(protocol);
                        match (1..=most).contains(&request.ports.len()) {
                            true => Ok((name, Wire::ChannelsForward(protocol))),
                            false => Err(bad(
                                "This WebSocket subprotocol wants 1 to 127 ports (5 in base64) in the CRI's PortForward; use SPDY/3.1+portforward.k8s.io",
                            )),
                        }
                    })
                    .transpose()?,
            }
        }
        _ if offered.is_empty() => {
            let [.., (_, oldest)] = Protocol::COMMAND;
            return Ok(Plan {
                wire: Wire::Channels(oldest),
                headers: told,
            });
        }
        _ => choose(&offered, &Protocol::COMMAND)
            .map(|(name, protocol)| (name, Wire::Channels(protocol))),
    };
    let problem = "None of the subprotocols in Sec-WebSocket-Protocol is known here";
    let (name, wire) = chosen.ok_or_else(|| bad(problem))?;
    told.push((SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name)));
    Ok(Plan {
        wire,
        headers: told,
    })
}

/// The first of the client's names that is known.
fn choose<T: Copy>(offered: &[&str], known: &[(&'static str, T)]) -> Option<(&'static str, T)> {
    let find = |name: &&str| known.iter().find(|(known, _)| known == name).copied();
    offered.iter().find_map(find)
}

/// The names in all fields of a header, each of which can be a list.
fn names<'a>(headers: &'a HeaderMap, header: &'a HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers
        .get_all(header)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(',').map(str::trim))
        .filter(|name| !name.is_empty())
}

fn bad(problem: &str) -> Refusal {
    refuse(StatusCode::BAD_REQUEST, problem)
}

fn refuse(status: StatusCode, problem: &str) -> Refusal {
    let mut response = Response::new(format!("{problem}\n"));
    *response.status_mut() = status;
    Box::new(response)
}
