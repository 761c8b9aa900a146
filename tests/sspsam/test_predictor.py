"""Predictor: answers, refusals, and no side effects of batching and swapping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from open_clip import SimpleTokenizer

import sspsam
from sspsam.checkpoints.load import CheckpointError
from sspsam.images import frames
from sspsam.images.frames import UInt8Image
from sspsam.images.views import Window
from sspsam.modeling.model import build_model
from sspsam.modeling.sam import build_image_encoder
from sspsam.phrases import tokenize
from sspsam.presets import IMAGE_ENCODERS, PRESETS, ImageEncoderConfig
from sspsam.results import Question, is_no_target, stability_of


@pytest.fixture(scope="module")
def predictor() -> sspsam.Predictor:
    return sspsam.Predictor.from_preset("ssp-sam-test", "cpu")


@pytest.fixture
def image() -> UInt8Image:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.fixture
def one_core() -> Iterator[None]:
    """Predictors made meanwhile share no batch out among cores."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(cores)


def test_answers_in_the_original_frame(predictor: sspsam.Predictor, image: UInt8Image) -> None:
    phrases = ["the dog", "two cats on the left"]
    referents = predictor.predict(predictor.embed(image), phrases)
    assert [referent.phrase for referent in referents] == phrases
    for referent in referents:
        assert referent.mask.shape == (90, 120)
        assert referent.mask.dtype == np.bool_
        assert 0 <= referent.score <= 1
        x0, y0, x1, y1 = referent.box_xyxy
        assert 0 <= x0 <= x1 <= 120
        assert 0 <= y0 <= y1 <= 90
        assert referent.no_target == (not referent.mask.any())


def test_a_phrase_alone_and_among_others_is_the_same(predictor: sspsam.Predictor, image: UInt8Image) -> None:
    embedding = predictor.embed(image)
    together = predictor.predict(embedding, ["red car", "the dog", "a tree"])[1]
    alone = predictor.predict(embedding, ["the dog"])[0]
    assert (together.mask == alone.mask).mean() > 0.999
    assert together.box_xyxy == pytest.approx(alone.box_xyxy, abs=0.05)


def test_spelling_does_not_matter() -> None:
    assert torch.equal(tokenize(["  The  DOG "]), tokenize(["the dog"]))


def test_a_phrase_ends_in_a_full_stop() -> None:
    assert tokenize(["zebra"])[0, :5].tolist() == [49406, 22548, 269, 49407, 0]


def test_a_mask_can_be_made_to_include_its_points(predictor: sspsam.Predictor, image: UInt8Image) -> None:
    """However unlikely they are; the threshold is lowered, so nothing is lost."""
    embedding = predictor.embed(image)
    height, width = image.shape[:2]
    for x, y in [(1, 1), (width - 1, height - 1), (width // 2, height // 3), (width - 2, 5)]:
        points = [[x + 0.5, y + 0.5, 1], [width / 2, height / 2, 0]]
        [plain] = predictor.decode([Question(embedding, "", points)])
        [included] = predictor.decode([Question(embedding, "", points, includes_points=True)])

        mask = predictor.finish(included, min_speck=0.9).mask

        assert mask[y, x]
        assert not (predictor.finish(plain).mask & ~mask).any()


@pytest.mark.parametrize("clicks", [{"points": [[10, 20, 1], [50, 60, 0]]}, {"boxes": [5, 5, 60, 70]}])
def test_clicks_change_the_answer(
    predictor: sspsam.Predictor, image: UInt8Image, clicks: dict[str, list[list[int]]]
) -> None:
    embedding = predictor.embed(image)
    without = predictor.predict(embedding, ["the dog"])[0]
    with_clicks = predictor.predict(embedding, ["the dog"], **clicks)[0]
    assert (with_clicks.mask != without.mask).any()


def test_no_phrases_no_answers(predictor: sspsam.Predictor, image: UInt8Image) -> None:
    assert predictor.predict(predictor.embed(image), []) == []


@pytest.mark.parametrize(
    ("phrase", "message"), [("", "empty"), (" \n", "empty"), ("dog " * 80, "too long: 83 tokens, the limit")]
)
def test_unusable_phrases_are_refused(
    predictor: sspsam.Predictor, image: UInt8Image, phrase: str, message: str
) -> None:
    with pytest.raises(sspsam.PhraseError, match=message):
        predictor.predict(predictor.embed(image), [phrase])


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8),
              np.zeros((4, 4, 3), np.float32)],
)  # fmt: skip
def test_unusable_images_are_refused(predictor: sspsam.Predictor, image: UInt8Image) -> None:
    with pytest.raises(ValueError, match="expected an \\(H, W, 3\\) uint8 image"):
        predictor.embed(image)


def test_swapped_weights_can_be_swapped_back(image: UInt8Image) -> None:
    predictor = sspsam.Predictor.from_preset("ssp-sam-test", "cpu")
    embedding = predictor.embed(image)
    own = predictor.trainable_state()
    before = predictor.predict(embedding, ["the dog"])[0]
    predictor.load_trainable({key: torch.randn_like(value) for key, value in own.items()})
    assert predictor.predict(embedding, ["the dog"])[0].box_xyxy != before.box_xyxy
    predictor.load_trainable(own)
    after = predictor.predict(embedding, ["the dog"])[0]
    assert after.box_xyxy == before.box_xyxy
    assert np.array_equal(after.mask, before.mask)


def test_weights_that_do_not_fit_change_nothing(predictor: sspsam.Predictor) -> None:
    own = predictor.trainable_state()
    broken = dict(own)
    broken["fusion.bias"] = torch.full_like(own["fusion.bias"], float("nan"))
    del broken["box_head.layers.0.bias"]
    with pytest.raises(CheckpointError, match=r"missing: box_head.layers.0.bias; not finite: fusion.bias"):
        predictor.load_trainable(broken)
    assert all(torch.equal(own[key], value) for key, value in predictor.trainable_state().items())


def test_unknown_presets_and_devices_are_named() -> None:
    with pytest.raises(ValueError, match="unknown preset 'sam-3', expected one of: " + ", ".join(PRESETS)):
        sspsam.Predictor.from_preset("sam-3")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        sspsam.Predictor.from_preset("ssp-sam-test", "gpu")


def test_a_preset_without_weights_says_so() -> None:
    with torch.device("meta"), pytest.raises(CheckpointError, match="no weights for ssp-sam-224"):
        sspsam.Predictor.from_preset("ssp-sam-224", "cpu")


def test_without_a_phrase_it_is_plain_sam(predictor: sspsam.Predictor, image: UInt8Image) -> None:
    embedding = predictor.embed(image)

    one = predictor.segment(embedding, points=[[60, 45, 1]])
    boxed = predictor.segment(embedding, points=[[60, 45, 1]], boxes=[5, 5, 60, 70])

    for referent in (one, boxed):
        assert referent.phrase == ""
        assert referent.mask.shape == (90, 120)
        assert 0 <= referent.score <= 1
        assert referent.no_target == (not referent.mask.any())
        assert referent.box_xyxy == sspsam.images.masks.mask_to_box_xyxy(referent.mask)
    assert (one.mask != boxed.mask).any()
    with pytest.raises(ValueError, match="points or a box"):
        predictor.segment(embedding)


def test_plain_sam_is_segment_anythings(predictor: sspsam.Predictor, image: UInt8Image) -> None:
    """The same numbers as segment_anything's own decoder, which takes one image with many prompts."""
    embedding = predictor.embed(image)
    sam, points = predictor.model.sam, torch.tensor([[[32.0, 24.0]]])
    with torch.inference_mode():
        sparse, dense = sam.prompt_encoder(points=(points, torch.ones(1, 1)), boxes=None, masks=None)
        positions = sam.prompt_encoder.get_dense_pe()
        logits, _ = sam.mask_decoder(
            embedding.image_embedding, positions, sparse, dense, multimask_output=False
        )
        expected = frames.sam_logits_to_original(logits, (90, 120))[0] > 0

    found = predictor.segment(embedding, points=[[60, 45, 1]])

    assert np.array_equal(found.mask, expected.numpy())


def test_what_is_pointed_at_may_be_small() -> None:
    """A phrase alone that fits a few pixels fits nothing; with a click on it, it is there."""
    mask = np.zeros((1000, 1000), dtype=np.bool_)
    mask[5:10, 5:10] = True

    assert is_no_target(mask, None, min_presence=0.5, has_positive_click=False)
    assert not is_no_target(mask, 0.1, min_presence=0.5, has_positive_click=True)
    assert is_no_target(np.zeros_like(mask), 0.9, min_presence=0.5, has_positive_click=True)


def test_an_answer_that_is_not_believed_in_means_nothing() -> None:
    image = np.full((40, 60, 3), 90, np.uint8)
    predictor = sspsam.Predictor.from_preset("ssp-sam-test", "cpu")
    model = predictor.model
    embedding = predictor.embed(image)
    [believed] = predictor.predict(embedding, ["the dog"])
    assert not believed.no_target
    model.presence_head = torch.nn.Linear(model.fusion.out_features, 1)
    with torch.no_grad():
        model.presence_head.weight.zero_()
        for logit, is_doubted in ((0.1, False), (-0.1, True)):
            model.presence_head.bias.fill_(logit)
            [answer] = predictor.predict(embedding, ["the dog"])
            assert answer.no_target == is_doubted
            assert answer.mask.any() != is_doubted
            assert answer.score == believed.score
    [pointed_at] = predictor.predict(embedding, ["the dog"], points=[[30, 20, 1]])
    assert not pointed_at.no_target, "what somebody points at is there"


def test_phrases_about_different_pictures_share_a_pass(
    predictor: sspsam.Predictor, image: UInt8Image
) -> None:
    pictures = [predictor.embed(image), predictor.embed(image[::-1, :60].copy())]
    questions = [
        Question(pictures[0], "the dog"),
        Question(pictures[1], "", points=[[10, 20, 1]]),
        Question(pictures[1], "a tree on the left"),
        Question(pictures[0], "the dog", boxes=[5, 5, 60, 70]),
    ]

    together = [predictor.finish(decoded) for decoded in predictor.decode(questions)]

    for question, found in zip(questions, together, strict=True):
        if question.phrase:
            where = {"points": question.points, "boxes": question.boxes}
            [expected] = predictor.predict(question.embedding, [question.phrase], **where)
        else:
            expected = predictor.segment(question.embedding, question.points)
        assert found.phrase == question.phrase
        assert found.mask.shape == question.embedding.original_hw
        assert (found.mask == expected.mask).mean() > 0.999
        assert found.box_xyxy == pytest.approx(expected.box_xyxy, abs=0.05)
        assert found.score == pytest.approx(expected.score, abs=1e-4)
    assert predictor.decode([]) == []


@pytest.mark.parametrize(
    ("logits", "stability"),
    [
        ([9.0, 9.0, -9.0, -9.0], 1.0),
        ([9.0, 0.5, -9.0, -9.0], 0.5),
        ([9.0, 0.5, -0.5, -0.5], 0.25),
        ([-9.0, -9.0, -9.0, -9.0], 1.0),
        ([0.5, -9.0, -9.0, -9.0], 0.0),
    ],
)
def test_a_mask_is_stable_where_its_threshold_does_not_matter(logits: list[float], stability: float) -> None:
    assert stability_of(np.array(logits, np.float32).reshape(2, 2), threshold=0.0) == stability


def test_an_answer_is_as_certain_as_score_and_mask(predictor: sspsam.Predictor, image: UInt8Image) -> None:
    embedding = predictor.embed(image)
    [decoded] = predictor.decode([Question(embedding, "a dog")])
    referent = predictor.finish(decoded)
    expected = stability_of(decoded.mask_logits.numpy(), predictor.model.mask_threshold)
    assert referent.stability == expected
    assert referent.certainty == pytest.approx(referent.score * expected)


def test_pictures_are_described_by_their_mean_patch(predictor: sspsam.Predictor, image: UInt8Image) -> None:
    embedding = predictor.embed(image)
    descriptor = embedding.descriptor
    assert descriptor.shape == (predictor.model.preset.clip.embed_dim,)
    np.testing.assert_allclose(descriptor, embedding.patch_features[0].numpy().mean(0), atol=1e-6)


def test_the_image_encoder_may_compute_in_bfloat16(image: UInt8Image) -> None:
    exact, fast = (
        sspsam.Predictor.from_preset("ssp-sam-test", "cpu", image_precision=precision)
        for precision in ("float32", "bfloat16")
    )
    expected, found = exact.embed(image), fast.embed(image)
    assert found.image_embedding.dtype == torch.float32
    assert not torch.equal(found.image_embedding, expected.image_embedding)
    torch.testing.assert_close(found.image_embedding, expected.image_embedding, atol=0.1, rtol=0.1)
    assert torch.equal(found.patch_features, expected.patch_features)
    assert fast.encoders_digest != exact.encoders_digest, "the one's embeddings are not the other's"
    with pytest.raises(ValueError, match="unknown precision 'int4', expected float32 or bfloat16"):
        sspsam.Predictor.from_preset("ssp-sam-test", "cpu", image_precision="int4")


def test_phrases_and_clicks_may_be_answered_in_bfloat16(image: UInt8Image) -> None:
    exact, fast = (
        sspsam.Predictor.from_preset("ssp-sam-test", "cpu", phrase_precision=precision)
        for precision in ("float32", "bfloat16")
    )
    embedding = exact.embed(image)
    assert torch.equal(fast.embed(image).image_embedding, embedding.image_embedding)
    questions = [
        *(
            Question(embedding, phrase)
            for phrase in ("the red square", "the dog", "the man in red on the left")
        ),
        Question(embedding, "", [[10, 12, 1]]),
        Question(embedding, "the dog", [[10, 12, 1], [3, 4, 0]], [1, 2, 30, 30]),
    ]
    for expected, found in zip(exact.decode(questions), fast.decode(questions), strict=True):
        assert found.mask_logits.dtype == torch.float32
        assert not torch.equal(found.mask_logits, expected.mask_logits)
        torch.testing.assert_close(found.mask_logits, expected.mask_logits, atol=0.1, rtol=0.1)
        assert found.score == pytest.approx(expected.score, abs=0.05)
        if expected.box_cxcywh is not None:
            torch.testing.assert_close(found.box_cxcywh, expected.box_cxcywh, atol=0.05, rtol=0.05)
    with pytest.raises(ValueError, match="unknown precision 'int4', expected float32 or bfloat16"):
        sspsam.Predictor.from_preset("ssp-sam-test", "cpu", phrase_precision="int4")  # type: ignore[arg-type]


def test_a_phrase_is_tokenised_once(
    predictor: sspsam.Predictor, image: UInt8Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = SimpleTokenizer.encode
    monkeypatch.setattr(
        SimpleTokenizer, "encode", lambda tokenizer, text: encoded.append(text) or encode(tokenizer, text)
    )
    for phrase in ("a phrase of this test", " A phrase  of this TEST"):
        tokenize([phrase])
        predictor.predict(predictor.embed(image), [phrase])
    assert encoded == ["a phrase of this test."]


def test_without_the_image_there_is_no_further_look(image: UInt8Image) -> None:
    """With `off`, there is none with it either."""
    answers = {}
    for mode in ("off", "always"):
        predictor = sspsam.Predictor.from_preset("ssp-sam-test", "cpu", second_look=mode)
        embedding = predictor.embed(image)
        encoded: list[int] = []
        embed_views = predictor.embed_views
        predictor.embed_views = lambda image, windows, embed=embed_views, seen=encoded: (  # type: ignore[method-assign]
            seen.append(len(windows)) or embed(image, windows)
        )
        for _ in range(2):
            answers[mode] = predictor.segment(embedding, boxes=[20, 20, 60, 50], image=image)
        assert encoded == ([] if mode == "off" else [1]), "the view is cached"
        plain = predictor.segment(embedding, boxes=[20, 20, 60, 50])
        assert np.array_equal(plain.mask, answers["off"].mask)
    assert answers["always"].mask.shape == image.shape[:2]


def test_questions_with_as_many_clicks_share_a_pass(one_core: None, image: UInt8Image) -> None:
    """And answers are those to each question alone, also about views of different sizes."""
    predictor = sspsam.Predictor.from_preset("ssp-sam-test", "cpu")
    windows = [Window(10, 10, 40), Window(-30, -20, 160), Window(60, 20, 48)]
    views = predictor.embed_views(image, windows)
    questions = [
        Question(view, "", [[5 + n, 20, 1], [30, 9, 0]], [2, 3, 30, 31 + n]) for n, view in enumerate(views)
    ]
    passes: list[int] = []
    last = predictor.model.sam.mask_decoder.iou_prediction_head
    with last.register_forward_hook(lambda head, inputs, scores: passes.append(len(scores))):
        together = predictor.decode([*questions, Question(predictor.embed(image), "the dog")])
    assert sorted(passes) == [1, 3]
    for question, decoded in zip(questions, together, strict=False):
        [alone] = predictor.decode([question])
        assert torch.allclose(alone.mask_logits, decoded.mask_logits, atol=1e-4)


def test_an_unknown_mode_of_further_looks_is_refused() -> None:
    with pytest.raises(ValueError, match="second_look is 'often', expected auto, off or always"):
        sspsam.Predictor.from_preset("ssp-sam-test", "cpu", second_look="often")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_published_decoder_looks_again(
    monkeypatch: pytest.MonkeyPatch, image: UInt8Image, precision: Literal["float32", "bfloat16"]
) -> None:
    """Its sizes, with random weights and a thin encoder: 256 x 256 logits, and global attention."""
    monkeypatch.setitem(IMAGE_ENCODERS, "vit_thin", ImageEncoderConfig(1024, 32, 1, 2, (0,)))
    thin = replace(
        PRESETS["ssp-sam-test"],
        image_encoder="vit_thin",
        decoder=PRESETS["ssp-sam-224"].decoder,
        weights=None,
    )
    monkeypatch.setitem(PRESETS, "ssp-sam-thin", thin)
    torch.manual_seed(0)
    model, encoder = build_model("ssp-sam-thin"), build_image_encoder("vit_thin")
    predictor = sspsam.Predictor(model, encoder, "ssp-sam-thin", "cpu", precision, "always")
    assert not predictor.look_rules.shrinks_close_ups
    [view] = predictor.embed_views(image, [Window(10, 10, 40)])
    assert view.image_embedding.dtype == torch.float32
    [decoded] = predictor.decode([Question(view, "", [[9, 9, 1]], [4, 4, 20, 24])])
    assert decoded.mask_logits.shape == (256, 256)
    seen: list[int] = []
    embed_views = predictor.embed_views
    predictor.embed_views = lambda image, windows: (  # type: ignore[method-assign]
        seen.append(len(windows)) or embed_views(image, windows)
    )
    found = predictor.segment(predictor.embed(image), boxes=[20, 20, 60, 50], image=image)
    assert found.mask.shape == image.shape[:2]
    assert seen == [1], "one encoder pass"
