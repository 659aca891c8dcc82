"""A tokenizer and a processor of the kind of SmolVLM's."""

import pytest
import tiny_pictures


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_pictures.make_tokenizer()


@pytest.fixture(scope="module")
def processor(tmp_path_factory, tokenizer):
    return tiny_pictures.make_processor(tmp_path_factory.mktemp("processor"), tokenizer)
