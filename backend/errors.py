"""Errors, grouped by what the caller can do about them.

    BackendError
        RequestError              not a request that Label Studio sends: change it (400)
            AccessError           wrong name, password or secret (401)
            ForbiddenError        signed in, but not allowed to do this: see the message (403)
            TooManyRequestsError  too many requests from this address: wait a minute (429)
            ContentTypeError      the body is not JSON (415)
        LabelingConfigError       the project's labeling config lacks a tag: change the config (422)
        ImageError                the task's image cannot be used: change the task or its file (502)
            ImageMissingError     the task has no image, or one at a forbidden address
            ImageFetchError       the image's server fails: try again
            ImageFormatError      not an image, or too large
        MaskSizeError             a mask is of an image of another size: delete it (422)
        PhraseRefusedError        the phrase is empty or too long: type another (422)
        ModelUnavailableError     no model: wait, or see the start page (503)
            ModelBusyError        too many requests: try again in a moment
            TooLateError          the caller has timed out: ask again
        QueueUnavailableError     Redis does not respond: start it (503)
        PrelabelError             invalid request for a whole project: change it
        ExportError               the output cannot be written: choose another path
        SettingsError             an environment variable has an invalid value: change it
        LabelStudioError          Label Studio refused or failed (502)
            LabelStudioUnavailable    unreachable: start it, or set LABEL_STUDIO_URL
            LabelStudioUnauthorized   the API key is refused: set LABEL_STUDIO_API_KEY
            LabelStudioNotFound       no such object
            LabelStudioBlocksError    its settings block the backend's address: set ML_BLOCK_LOCAL_IP there

Every message may be shown to annotators: it says what to do, and contains no secret.
"""


class BackendError(Exception):
    """Base of all errors that are reported to callers; see the module's docstring."""

    status = 500


class RequestError(BackendError):
    """The request is incomplete, or not in Label Studio's format."""

    status = 400


class AccessError(RequestError):
    """The caller is not authenticated."""

    status = 401


class ForbiddenError(RequestError):
    """The caller is authenticated, but may not do this, or not in this way."""

    status = 403


class TooManyRequestsError(RequestError):
    """Too many requests or failed logins from the caller's address."""

    status = 429


class ContentTypeError(RequestError):
    """The body is of another type than JSON."""

    status = 415


class LabelingConfigError(BackendError):
    """The labeling config is not XML, or lacks a required tag."""

    status = 422


class ImageError(BackendError):
    """A task's image cannot be used."""

    status = 502


class ImageMissingError(ImageError):
    """The task has no image, or one at a forbidden address."""

    status = 422


class ImageFetchError(ImageError):
    """The image's server did not deliver it."""


class ImageFormatError(ImageError):
    """The file is not an image, or is too large."""

    status = 422


class MaskSizeError(BackendError):
    """A mask is of an image of another size, such as the one that was at the address before."""

    status = 422


class PhraseRefusedError(BackendError):
    """The model cannot process the phrase."""

    status = 422


class ModelUnavailableError(BackendError):
    """The model is still loading, or could not be loaded."""

    status = 503


class ModelBusyError(ModelUnavailableError):
    """The model's queue is full."""


class TooLateError(ModelUnavailableError):
    """The caller timed out before its turn; the answer was not computed."""


class QueueUnavailableError(BackendError):
    """Redis does not accept jobs."""

    status = 503


class PrelabelError(BackendError, ValueError):
    """Invalid phrases or labels for a whole project."""

    status = 422


class ExportError(BackendError, ValueError):
    """The output path cannot be written."""


class SettingsError(BackendError, ValueError):
    """An environment variable has an invalid value."""


class LabelStudioError(BackendError):
    """Label Studio answered with an error."""

    status = 502


class LabelStudioUnavailable(LabelStudioError):
    """Label Studio cannot be reached."""


class LabelStudioUnauthorized(LabelStudioError):
    """Label Studio refuses the API key."""


class LabelStudioNotFound(LabelStudioError):
    """Label Studio has no object with this ID."""


class LabelStudioBlocksError(LabelStudioError):
    """Label Studio's settings block the backend's address."""
