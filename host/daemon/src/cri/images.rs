//! ImageService.

use super::{convert, image_status};
use bulkhead_cri::v1::image_service_server::ImageService;
use bulkhead_cri::v1::*;
use bulkhead_image::{Auth, ImageError, ImageStore, PullPhase, Specification};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio_stream::Iter;
use tonic::{Request, Response, Status};

/// Images in one message of StreamImages: with the longest names far below the limit of a message.
const IMAGES_A_MESSAGE: usize = 200;

/// The image service.
pub(crate) struct ImageApi {
    store: ImageStore,
}

impl ImageApi {
    pub(crate) fn new(store: ImageStore) -> Self {
        Self { store }
    }

    /// All images, or the one that the filter stands for.
    async fn matching(&self, filter: Option<ImageFilter>) -> Result<Vec<Image>, Status> {
        let wanted = filter
            .and_then(|filter| filter.image)
            .map(|image| image.image)
            .filter(|name| !name.is_empty());
        let images = match wanted {
            Some(name) => {
                let image = self.store.get(&name).await;
                image.map(|image| image.into_iter().collect())
            }
            None => self.store.list().await,
        };
        let images = images.map_err(image_status)?;
        Ok(images.into_iter().map(convert::image).collect())
    }
}

/// A word for what a pull is doing.
pub(crate) fn pull_phase(phase: PullPhase) -> &'static str {
    match phase {
        PullPhase::Resolving => "resolving",
        PullPhase::Downloading => "downloading",
        PullPhase::Unpacking => "unpacking",
        PullPhase::Writing => "writing",
        PullPhase::Done => "done",
    }
}

fn named(image: Option<ImageSpec>) -> Result<String, Status> {
    match image
        .map(|image| image.image)
        .filter(|name| !name.is_empty())
    {
        Some(name) => Ok(name),
        None => Err(Status::invalid_argument("image.image: must be set")),
    }
}

/// What a caller says of itself. A user with a password comes first, as with containerd; Docker
/// writes a user without one beside an identity token.
fn credentials(auth: Option<AuthConfig>) -> Result<Option<Auth>, ImageError> {
    let Some(auth) = auth else {
        return Ok(None);
    };
    let given = if !auth.username.is_empty() && !auth.password.is_empty() {
        Auth::basic(auth.username, auth.password)
    } else if !auth.identity_token.is_empty() {
        Auth::identity_token(auth.identity_token)
    } else if !auth.auth.is_empty() {
        Auth::from_base64(&auth.auth)?
    } else if !auth.registry_token.is_empty() {
        Auth::registry_token(auth.registry_token)
    } else if !auth.username.is_empty() {
        Auth::basic(auth.username, auth.password)
    } else {
        return Ok(None);
    };
    Ok(Some(given.only_for(&auth.server_address)))
}

/// What containerd tells too: the configuration as it was pulled, and the layers' digest.
fn verbose(specification: &Specification) -> Result<String, Status> {
    let configuration: Value = serde_json::from_slice(&specification.configuration)
        .map_err(|error| Status::internal(format!("The configuration is not JSON: {error}")))?;
    let info = json!({ "chainID": specification.chain_id, "imageSpec": configuration });
    Ok(info.to_string())
}

#[tonic::async_trait]
impl ImageService for ImageApi {
    type StreamImagesStream = Iter<std::vec::IntoIter<Result<StreamImagesResponse, Status>>>;

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let images = self.matching(request.into_inner().filter).await?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.matching(request.into_inner().filter).await?;
        let parts: Vec<_> = images
            .chunks(IMAGES_A_MESSAGE)
            .map(|images| {
                Ok(StreamImagesResponse {
                    images: images.to_vec(),
                })
            })
            .collect();
        Ok(Response::new(tokio_stream::iter(parts)))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let name = named(request.image)?;
        let image = self.store.get(&name).await.map_err(image_status)?;
        let mut info = HashMap::new();
        if let Some(image) = image.as_ref().filter(|_| request.verbose) {
            let specification = self.store.specification(&image.id).await;
            let text = verbose(&specification.map_err(image_status)?)?;
            info.insert("info".to_owned(), text);
        }
        Ok(Response::new(ImageStatusResponse {
            image: image.map(convert::image),
            info,
        }))
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        let name = named(request.image)?;
        let auth = credentials(request.auth).map_err(image_status)?;
        let image = self
            .store
            .pull(&name, auth, |_| ())
            .await
            .map_err(image_status)?;
        Ok(Response::new(PullImageResponse {
            image_ref: image.id,
        }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let name = named(request.into_inner().image)?;
        self.store.remove(&name).await.map_err(image_status)?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        let info = self.store.fs_info().await.map_err(image_status)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let usage = FilesystemUsage {
            timestamp: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
            fs_id: Some(FilesystemIdentifier {
                mountpoint: info.root.display().to_string(),
            }),
            used_bytes: Some(UInt64Value {
                value: info.used_bytes,
            }),
            inodes_used: Some(UInt64Value {
                value: info.used_inodes,
            }),
        };
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![usage],
            container_filesystems: Vec::new(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::credentials;
    use bulkhead_cri::v1::AuthConfig;
    use bulkhead_image::Auth;

    #[test]
    fn the_credentials_of_an_auth_config() {
        let text = str::to_owned;
        let none = AuthConfig::default;
        let user = || AuthConfig {
            username: text("me"),
            ..none()
        };
        let basic = || Some(Auth::basic("me", "secret"));
        for (config, want) in [
            (none(), None),
            (
                AuthConfig {
                    password: text("secret"),
                    ..user()
                },
                basic(),
            ),
            (user(), Some(Auth::basic("me", ""))),
            (
                AuthConfig {
                    auth: text("bWU6c2VjcmV0"),
                    ..none()
                },
                basic(),
            ),
            (
                AuthConfig {
                    identity_token: text("I"),
                    ..user()
                },
                Some(Auth::identity_token("I")),
            ),
            (
                AuthConfig {
                    registry_token: text("R"),
                    ..none()
                },
                Some(Auth::registry_token("R")),
            ),
            (
                AuthConfig {
                    auth: text("bWU6c2VjcmV0"),
                    server_address: text("https://reg.example/v1/"),
                    ..none()
                },
                basic().map(|auth| auth.only_for("reg.example")),
            ),
        ] {
            assert_eq!(credentials(Some(config)).unwrap(), want);
        }
        let broken = AuthConfig {
            auth: text("%"),
            ..none()
        };
        assert!(credentials(Some(broken)).is_err());
        assert_eq!(credentials(None).unwrap(), None);
    }
}
