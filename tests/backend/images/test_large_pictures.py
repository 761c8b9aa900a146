"""An image of the maximum size, from its URL to its mask."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from redis import Redis
from werkzeug.wrappers import Response

from backend.settings import Settings
from backend.web.app import create_app
from tests.backend.editor import PATH, ask, masks, prompt, texts
from tests.backend.parts import service_of
from tests.backend.web_server import Web

SIDE_PX = 10_000
LOAD_S = 60.0


@pytest.mark.slow
def test_a_hundred_megapixels_get_their_mask(
    settings: Settings, redis_server: Redis, label_studio: Web
) -> None:
    assert settings.image_max_pixels == SIDE_PX**2
    ramp = np.linspace(0, 255, SIDE_PX).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(np.broadcast_to(ramp, (SIDE_PX, SIDE_PX))).save(file, "JPEG")
    label_studio.answers[PATH] = Response(file.getvalue())
    app = create_app(settings, redis_server)
    engine = service_of(app).engine
    engine.start()
    assert engine.wait(LOAD_S)

    answer = ask(app.test_client(), prompt("the bright part"))

    engine.stop()
    assert texts(answer, "status") is None, "nothing went wrong"
    (mask,) = masks(answer).values()
    assert mask.shape == (SIDE_PX, SIDE_PX)
    assert mask.any()
