from .methods.attribution import (
    Attribution as Attribution,
    attribute as attribute,
    prepare as prepare,
)
from .methods.captum_api import IntegratedGradients as IntegratedGradients
from .methods.cumulative import Cumulative as Cumulative, attribute_along as attribute_along
from .models.embeddings import at_embedding as at_embedding
from .quadrature.rules import QuadratureRule as QuadratureRule
from .storage.store import Access as Access, Store as Store
