from .checks.verify import verify_run as verify_run
from .cluster import Cluster as Cluster
from .operator import Operator as Operator
from .running.jobs import plan_job as plan_job, run_job as run_job
from .running.retry import retry_quarantined as retry_quarantined
from .runs.query import Run as Run, open_run as open_run
