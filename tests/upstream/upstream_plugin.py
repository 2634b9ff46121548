"""pytest plugin: joblib's own tests over the azure backend."""

import os
import joblib.parallel
import joblib_azure

mode = os.environ["UPSTREAM_MODE"]
if mode == "alias":
    joblib.parallel.BACKENDS["loky"] = joblib_azure._backend
    del joblib.parallel.BACKENDS["azure"]
elif mode == "default":
    joblib.parallel.DEFAULT_BACKEND = "azure"
    if hasattr(joblib.parallel, "DEFAULT_PROCESS_BACKEND"):
        joblib.parallel.DEFAULT_PROCESS_BACKEND = "azure"
