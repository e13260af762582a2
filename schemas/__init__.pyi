from .errors import (
    DataError as DataError,
    IntegrandError as IntegrandError,
    IntegrityError as IntegrityError,
    SpecError as SpecError,
    TransientError as TransientError,
)
from .records import (
    Plan as Plan,
    RunManifest as RunManifest,
    Shard as Shard,
    ShardFooter as ShardFooter,
)
from .specs.accuracy import (
    Adaptive as Adaptive,
    Exact as Exact,
    FixedSamples as FixedSamples,
    FixedSteps as FixedSteps,
)
from .specs.job import AttributeSpec as AttributeSpec, JobSpec as JobSpec
from .specs.methods import (
    ExpectedGradients as ExpectedGradients,
    InputXGradient as InputXGradient,
    Saliency as Saliency,
    SmoothGrad as SmoothGrad,
)
from .tables import RowStatus as RowStatus
