"""Room 3: predictions and clocks become records.

Importing it first tells OpenMP's threads to sleep while they wait (it must be told before torch is loaded). Where the
pipeline and the network share the cores, threads that spin at a barrier take the cores from the decoders and from one
another: beside other busy programs on two cores the demo networks ran 2 to 3 times slower. OMP_WAIT_POLICY=ACTIVE
undoes it.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
