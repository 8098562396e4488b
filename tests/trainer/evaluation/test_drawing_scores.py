"""Scores of drawings equal a direct computation, on tiny random judges of the real classes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from torch import nn
from transformers import BlipForQuestionAnswering, CLIPModel, YolosForObjectDetection

from tests.trainer.evaluation.drawing_judges import (
    DEC,
    END,
    WORDS,
    InceptionFile,
    save_blip,
    save_clip,
    save_detector,
    save_inception,
)
from trainer.evaluation.drawing.blip_vqa import Blip, blip_vqa_scores, questions_of
from trainer.evaluation.drawing.clip_scores import Clip, clip_scores
from trainer.evaluation.drawing.frechet import (
    Inception,
    features_of,
    frechet_distance,
    read_statistics,
    reference_images,
)
from trainer.evaluation.drawing.object_scores import COLORS, Detector, check_record, object_scores, relations
from trainer.evaluation.drawing.open_clip_weights import from_open_clip


MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
PROMPTS = ["a red book", "a blue mug", "a photo of a book", "red"]


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges")
    for name, save in (("clip", save_clip), ("blip", save_blip), ("detector", save_detector)):
        save(folder / name)
    save_inception(folder / "inception.pt")
    return folder


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    sizes = [(64, 64), (40, 64), (64, 48), (32, 32)]
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def normalised(image, size):
    """As CLIP and BLIP see it: bicubic by Pillow."""
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=float) / 255
    return torch.tensor((pixels - MEAN) / STD).permute(2, 0, 1)[None].float()


def ids_of(text, last=END):
    return torch.tensor([[2, *(WORDS.index(word) for word in text.replace("?", " ?").split()), last]])


def direct_cosine(model, image, text):
    width, height = image.size
    side = 32
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    pixels = normalised(image, size)[..., top : top + side, left : left + side]
    with torch.no_grad():
        output = model(input_ids=ids_of(text), pixel_values=pixels)
    return float(F.cosine_similarity(output.image_embeds, output.text_embeds))


def test_the_clip_score_is_the_mean_cosine(judges, images):
    model = CLIPModel.from_pretrained(judges / "clip").eval()
    expected = [direct_cosine(model, *pair) for pair in zip(images, PROMPTS, strict=True)]
    clip = Clip.from_pretrained(judges / "clip")
    assert clip_scores(images, PROMPTS, clip, batch_size=3) == pytest.approx(expected, abs=1e-6)
    assert max(expected) - min(expected) > 1e-3
    long = "a red book " * 20
    assert clip_scores(images[:1], [long], clip) == pytest.approx(clip_scores(images[:1], ["a red book " * 9], clip))


class OpenClipBlock(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})

    def forward(self, x, mask=None):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


def tower(width=16, heads=2, hidden=24, layers=2):
    return nn.ModuleDict({"resblocks": nn.ModuleList([OpenClipBlock(width, heads, hidden) for _ in range(layers)])})


class OpenClip(nn.Module):
    """OpenCLIP's model, as far as names and sums go."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Module()
        self.visual.conv1 = nn.Conv2d(3, 16, 8, stride=8, bias=False)
        self.visual.class_embedding = nn.Parameter(torch.randn(16))
        self.visual.positional_embedding = nn.Parameter(torch.randn(17, 16))
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(16), nn.LayerNorm(16)
        self.visual.transformer = tower()
        self.visual.proj = nn.Parameter(torch.randn(16, 12))
        self.transformer = tower()
        self.token_embedding = nn.Embedding(END + 1, 16)
        self.positional_embedding = nn.Parameter(torch.randn(12, 16))
        self.ln_final = nn.LayerNorm(16)
        self.text_projection = nn.Parameter(torch.randn(16, 12))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def cosine(self, pixels, ids):
        x = self.visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.visual.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.visual.ln_pre(x + self.visual.positional_embedding)
        for block in self.visual.transformer["resblocks"]:
            x = block(x)
        image = self.visual.ln_post(x[:, 0]) @ self.visual.proj
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for block in self.transformer["resblocks"]:
            x = block(x, torch.full((ids.shape[1],) * 2, -torch.inf).triu(1))
        text = self.ln_final(x)[0, ids.argmax()] @ self.text_projection
        return float(F.cosine_similarity(image, text[None]))


def test_hps_is_the_cosine_of_openclip_with_its_weights(judges, images, tmp_path):
    torch.manual_seed(0)
    model = OpenClip().eval()
    for layer in model.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "HPS_v2.1_compressed.pt")
    clip = Clip.from_pretrained(judges / "clip", weights=tmp_path / "HPS_v2.1_compressed.pt")
    with torch.no_grad():
        expected = [model.cosine(normalised(images[i], (32, 32)), ids_of(PROMPTS[i])) for i in (0, 3)]
    found = clip_scores([images[0], images[3]], [PROMPTS[0], PROMPTS[3]], clip)
    assert found == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="'visual.attn_pool.query' has no counterpart"):
        from_open_clip({"visual.attn_pool.query": torch.zeros(1)})
    (tmp_path / "broken.pt").write_bytes(b"broken")
    with pytest.raises(ValueError, match="with the weights '.*broken.pt' cannot be loaded: '.*broken.pt' cannot be"):
        Clip.from_pretrained(judges / "clip", weights=tmp_path / "broken.pt")


def test_blip_vqa_is_the_product_of_the_shares_of_yes(judges, images):
    questions = [["a red book?", "a blue mug?"], ["a mug?"], ["a book?", "red?", "a red photo of a mug?"], ["blue?"]]
    model = BlipForQuestionAnswering.from_pretrained(judges / "blip").eval()
    expected = []
    for image, own in zip(images, questions, strict=True):
        product = 1.0
        for question in own:
            ids = ids_of(question, last=3)
            ids[0, 0] = DEC + 1
            with torch.no_grad():
                seen = model.vision_model(
                    normalised(image, (480, 480)), interpolate_pos_encoding=True
                ).last_hidden_state
                read = model.text_encoder(ids, encoder_hidden_states=seen)[0]
                logits = model.text_decoder(torch.tensor([[DEC]]), encoder_hidden_states=read).logits[0, -1]
            yes, no = logits.softmax(-1)[[4, 5]].tolist()
            product *= yes / (yes + no)
        expected.append(product)
    blip = Blip.from_pretrained(judges / "blip")
    assert blip_vqa_scores(images, questions, blip, batch_size=4) == pytest.approx(expected, abs=1e-6)
    assert max(expected) - min(expected) > 1e-2


def test_the_questions_of_a_record():
    assert questions_of({"questions": "a red book?##a blue mug? "}) == ["a red book?", "a blue mug?"]
    with pytest.raises(
        ValueError, match="A prompt needs `questions`, one for each of its noun phrases .* got None: 'x'"
    ):
        questions_of({"prompt": "x"})


def direct_frechet(mean, covariance, other_mean, other_covariance):
    from scipy.linalg import sqrtm

    root = sqrtm(covariance @ other_covariance)
    return float(((mean - other_mean) ** 2).sum() + np.trace(covariance + other_covariance - 2 * root.real))


def test_the_frechet_distance_is_the_formula(tmp_path):
    random = np.random.default_rng(0)
    ours, others = random.normal(size=(40, 5)), random.normal(size=(60, 5)) @ random.normal(size=(5, 5)) + 0.3
    statistics = others.mean(0), np.cov(others, rowvar=False)
    expected = direct_frechet(ours.mean(0), np.cov(ours, rowvar=False), *statistics)
    assert frechet_distance(torch.tensor(ours), torch.tensor(others)) == pytest.approx(expected, abs=1e-6)
    np.savez(tmp_path / "a.npz", mu=statistics[0], sigma=statistics[1])
    torch.save({"mu": torch.tensor(statistics[0]), "sigma": torch.tensor(statistics[1])}, tmp_path / "b.pt")
    torch.save(statistics, tmp_path / "c.pt")
    for name in ("a.npz", "b.pt", "c.pt"):
        distance = frechet_distance(torch.tensor(ours), read_statistics(tmp_path / name))
        assert distance == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(torch.tensor(ours), torch.tensor(ours)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="`reference` must be of 5 features as the images are, got 4"):
        frechet_distance(torch.tensor(ours), torch.tensor(others[:, :4]))
    with pytest.raises(ValueError, match="needs two images at least on either side, got 1"):
        frechet_distance(torch.tensor(ours[:1]), torch.tensor(others))


def test_references_that_are_none(tmp_path, images):
    with pytest.raises(ValueError, match="`reference`: there is no folder '.*nowhere'"):
        reference_images(tmp_path / "nowhere")
    images[0].save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="must hold two images at least, it holds 1"):
        reference_images(tmp_path)
    np.savez(tmp_path / "a.npz", mu=np.zeros(3))
    np.savez(tmp_path / "b.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    (tmp_path / "c.pt").write_bytes(b"no")
    for name, message in (
        ("a.npz", "must hold `mu` and `sigma`"),
        ("b.npz", "must have shapes"),
        ("c.pt", "must hold"),
    ):
        with pytest.raises(ValueError, match=message):
            read_statistics(tmp_path / name)


def test_inception_sees_images_as_the_authors_or_as_clean_fid_show_them(judges, images):
    layers = save_inception(judges / "inception.pt")
    pixels = [torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].float() for image in images]
    with torch.no_grad():
        bilinear = [layers(F.interpolate(each / 255, (299, 299), mode="bilinear") * 2 - 1)[0] for each in pixels]
        shown = []
        for image in images:
            channels = [Image.fromarray(np.asarray(image)[..., i].astype(np.float32)) for i in range(3)]
            resized = np.stack([np.asarray(c.resize((299, 299), Image.Resampling.BICUBIC)) for c in channels])
            shown.append(layers(torch.tensor((resized.clip(0, 255) - 128) / 128)[None])[0])
    for resize, expected in (("bilinear", bilinear), ("clean", shown)):
        network = Inception(judges / "inception.pt", resize=resize)
        torch.testing.assert_close(features_of(images, network, 3), torch.stack(expected), atol=1e-6, rtol=0)
    assert (torch.stack(bilinear) - torch.stack(shown)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="`resize` must be among"):
        Inception(judges / "inception.pt", resize="nearest")
    torch.save(InceptionFile().state_dict(), judges / "weights.pt")
    for name in ("weights.pt", "nowhere.pt"):
        with pytest.raises(ValueError, match=f"{name}' cannot be read as the TorchScript of Inception"):
            Inception(judges / name)


def test_a_detector_gives_boxes_the_surest_first(judges, images):
    detector = Detector.from_pretrained(judges / "detector")
    model = YolosForObjectDetection.from_pretrained(judges / "detector").eval()
    inputs = detector.image_processor(images[1], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    shares = output.logits[0].softmax(-1)[:, :-1]
    x, y, width, height = output.pred_boxes[0].unbind(-1)
    expected = {}
    for i in shares.max(-1).values.argsort(descending=True).tolist():
        if shares[i].max() > 0.05:
            box = torch.stack(
                [(x - width / 2) * 64, (y - height / 2) * 40, (x + width / 2) * 64, (y + height / 2) * 40]
            )
            expected.setdefault(model.config.id2label[int(shares[i].argmax())], []).append(tuple(box[:, i].tolist()))
    found = detector.objects(images[1], 0.05)
    assert {*found} == {*expected} and max(map(len, found.values())) > 1
    for name, boxes in found.items():
        assert np.allclose(boxes, expected[name], atol=1e-4)


def drawn(*boxes):
    """White, with rectangles."""
    image = Image.new("RGB", (100, 100), "white")
    for color, box in boxes:
        image.paste(color, box)
    return image


class SeesRectangles(Detector):
    """Finds the rectangles of `drawn`, which were told to it, and is as sure as was told."""

    def __init__(self, told):
        object.__setattr__(self, "told", told)

    names = property(lambda self: {"book", "mug", "keyboard"})

    def objects(self, image, threshold):
        found = {}
        for name, sure, box in sorted(self.told, key=lambda each: -each[1]):
            if sure > threshold:
                found.setdefault(name, []).append(box)
        return found


class SeesColors(Clip):
    """Its vectors are colours."""

    def __init__(self):
        pass

    def embed_texts(self, texts):
        return torch.stack([F.one_hot(torch.tensor(self.color(text)), 10).float() for text in texts])

    def embed_images(self, crops):
        values = torch.tensor([ImageColor.getrgb(color) for color in COLORS]).float()
        means = torch.stack([torch.tensor(np.asarray(crop)).float().mean((0, 1)) for crop in crops])
        return -torch.cdist(means, values)

    def color(self, text):
        return next(i for i, color in enumerate(COLORS) if color in text)


LEFT, RIGHT = (10, 40, 30, 60), (70, 40, 90, 60)


@pytest.mark.parametrize(
    ("record", "right"),
    [
        ({"include": [{"class": "book", "count": 1}]}, 1),
        ({"include": [{"class": "book", "count": 2}]}, 0),
        ({"include": [{"class": "computer keyboard", "count": 1}]}, 1),
        ({"tag": "counting", "include": [{"class": "computer keyboard", "count": 1}]}, 0),
        ({"include": [{"class": "book", "count": 1}], "exclude": [{"class": "book", "count": 2}]}, 1),
        ({"include": [{"class": "book", "count": 1}], "exclude": [{"class": "mug", "count": 1}]}, 0),
        ({"include": [{"class": "book", "count": 1, "color": "red"}]}, 1),
        ({"include": [{"class": "book", "count": 1, "color": "blue"}]}, 0),
        ({"include": [{"class": "mug", "count": 1}, {"class": "book", "count": 1, "position": ["left of", 0]}]}, 1),
        ({"include": [{"class": "mug", "count": 1}, {"class": "book", "count": 1, "position": ["above", 0]}]}, 0),
        ({"include": [{"class": "mug", "count": 2}, {"class": "book", "count": 1, "position": ["left of", 0]}]}, 0),
    ],
)
def test_what_geneval_asks_of_objects(record, right):
    image = drawn(("red", LEFT), ("blue", RIGHT))
    detector = SeesRectangles([("book", 0.95, LEFT), ("mug", 0.95, RIGHT), ("keyboard", 0.5, RIGHT)])
    (outcome,) = object_scores([image], [record], detector, SeesColors())
    assert outcome["right"] == right and ("reason" in outcome) == (not right)


def test_where_a_box_is_from_another():
    assert relations(LEFT, RIGHT) == {"left of"} and relations(RIGHT, LEFT) == {"right of"}
    assert relations((40, 0, 60, 10), (40, 50, 60, 60)) == {"above"}
    assert relations((0, 0, 10, 10), (80, 80, 90, 90)) == {"left of", "above"}
    assert relations((0, 0, 100, 100), (5, 0, 105, 100)) == set()  # too near for their size


def test_records_that_cannot_be_judged():
    detector = SeesRectangles([])
    for record, message in (
        ({"prompt": "x"}, "The prompt 'x' needs `include` or `exclude`"),
        ({"include": [{"class": "cat", "count": 1}]}, "does not know the class 'cat'"),
        ({"include": [{"class": "mug", "count": 0}]}, "`count` must be a positive integer, got 0"),
        ({"include": [{"class": "mug", "count": 1, "color": "teal"}]}, "`color` must be among .* got 'teal'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_record(record, detector)


def test_judges_that_are_not_there(tmp_path):
    for judge, message in ((Clip, "The CLIP model"), (Blip, "The BLIP model"), (Detector, "The detector")):
        with pytest.raises(ValueError, match=f"{message} '.*nowhere' cannot be loaded"):
            judge.from_pretrained(tmp_path / "nowhere")
