"""Published robust networks: `zoo.load(FILE, ARCHITECTURE)` is a Keras network of their weights."""

from tfrobust.zoo.architectures import ARCHITECTURES as ARCHITECTURES
from tfrobust.zoo.loading import load as load
from tfrobust.zoo.published import PUBLISHED as PUBLISHED
from tfrobust.zoo.published import Published as Published
from tfrobust.zoo.reading import weights_file as weights_file
