"""What can go wrong, named by what the caller can do about it.

    BackendError
        RequestError              the request is not one of Label Studio's: send another (400)
            AccessError           it carries the wrong name, password or secret (401)
            TooManyRequestsError  its address asks too often: wait a minute (429)
        LabelingConfigError       the project's labeling config lacks a tag: change the config (422)
        ImageError                the task's image cannot be used: change the task or its file (502)
            ImageMissingError     the task names no image, or one that we never fetch
            ImageFetchError       its server does not give it to us now: try again
            ImageFormatError      the file is no image, or too large a one
        PhraseRefusedError        the phrase is empty or too long: type another (422)
        ModelUnavailableError     no model to ask: wait, or see the start page (503)
            ModelBusyError        too many ask at once: try again in a moment
            TooLateError          who asked has stopped waiting by now: ask again
        QueueUnavailableError     Redis does not answer: start it (503)
        PrelabelError             what is asked of a whole project cannot be done: ask otherwise
        ExportError               labels cannot be written there: name another place
        SettingsError             the environment holds something that it cannot mean: change it
        LabelStudioError          Label Studio does not do what we asked (502)
            LabelStudioUnavailable    it cannot be reached: start it, or set LABEL_STUDIO_URL
            LabelStudioUnauthorized   it refuses our key: set LABEL_STUDIO_API_KEY
            LabelStudioNotFound       it has no such thing
            LabelStudioBlocksError    its settings forbid our address: set ML_BLOCK_LOCAL_IP there

Every message is one that an annotator may read: it says what to do, and holds no secret.
"""


class BackendError(Exception):
    """Something that the service reports to whom it concerns; see the tree in the module's docstring."""

    status = 500


class RequestError(BackendError):
    """The request lacks something, or holds something else than Label Studio sends."""

    status = 400


class AccessError(RequestError):
    """Who asks has not shown that they may."""

    status = 401


class TooManyRequestsError(RequestError):
    """Who asks has asked, or guessed, too often."""

    status = 429


class LabelingConfigError(BackendError):
    """The labeling config is not XML, or lacks a tag that we need."""

    status = 422


class ImageError(BackendError):
    """A task's image cannot be used."""

    status = 502


class ImageMissingError(ImageError):
    """The task has no image, or one at an address that is never fetched."""

    status = 422


class ImageFetchError(ImageError):
    """The image's server did not give it to us."""


class ImageFormatError(ImageError):
    """The file is not an image, or is larger than we read."""

    status = 422


class PhraseRefusedError(BackendError):
    """A phrase that the model cannot read."""

    status = 422


class ModelUnavailableError(BackendError):
    """The model is still loading, or could not be loaded."""

    status = 503


class ModelBusyError(ModelUnavailableError):
    """More requests wait for the model than may."""


class TooLateError(ModelUnavailableError):
    """The answer would have come after its caller had stopped waiting: it was not computed."""


class QueueUnavailableError(BackendError):
    """Redis does not take a job."""

    status = 503


class PrelabelError(BackendError, ValueError):
    """What is to be looked for in a whole project cannot be."""

    status = 422


class ExportError(BackendError, ValueError):
    """Labels cannot be written where they were to go."""


class SettingsError(BackendError, ValueError):
    """A variable of the environment cannot be read."""


class LabelStudioError(BackendError):
    """Label Studio answered with an error."""

    status = 502


class LabelStudioUnavailable(LabelStudioError):
    """Label Studio cannot be reached."""


class LabelStudioUnauthorized(LabelStudioError):
    """Label Studio refuses our key."""


class LabelStudioNotFound(LabelStudioError):
    """Label Studio has nothing under that id."""


class LabelStudioBlocksError(LabelStudioError):
    """Label Studio may not speak to the backend's address, as it is set up."""
